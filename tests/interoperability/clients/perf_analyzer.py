"""NVIDIA's perf_analyzer, which measures a model over the Open Inference Protocol and OpenAI's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.interoperability.calls import Answers, Server, call, limitation

# It sends no header when it asks for the model's metadata over gRPC.
NO_KEY = "it asks for metadata without the key"
GRPC, HTTP = "Open Inference Protocol, gRPC", "Open Inference Protocol, HTTP"
REQUESTS, IN_FLIGHT = 30, 2


def measure(server: Server, *flags: str) -> None:
    """Measures with a few requests; raises unless they are answered, and the server counts them as successful."""
    data = {"data": [{"text": {"content": [text], "shape": [1]}} for text in server.texts]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "texts.json")
        source.write_text(json.dumps(data))
        command = [str(Path(sys.executable).parent / "perf_analyzer"), "-m", server.model, *flags]
        command += ["--input-data", str(source), "--request-count", str(REQUESTS)]
        command += ["--concurrency-range", str(IN_FLIGHT)]
        command += [argument for name, value in server.headers.items() for argument in ("-H", f"{name}: {value}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            raise OSError(f"exit code {done.returncode}: {done.stdout[-200:]} {done.stderr[-200:]}")
    answered = re.search(r"Successful request count: (\d+)", done.stdout)
    assert answered is not None, done.stdout
    # The first requests may be counted before it reads the server's counters for the first time.
    assert int(answered[1]) >= REQUESTS - IN_FLIGHT, done.stdout
    assert f"Request count: {REQUESTS}\n" in done.stdout


def http_tls(server: Server) -> list[str]:
    return ["--ssl-https-ca-certificates-file", server.ca] if server.ca else []


@call("perf_analyzer -i grpc", GRPC, plain_only=NO_KEY)
def grpc(server: Server) -> Answers:
    measure(server, "-i", "grpc", "-u", server.grpc)
    return {}


@call("perf_analyzer -i grpc --streaming", GRPC, plain_only=NO_KEY)
def grpc_stream(server: Server) -> Answers:
    measure(server, "-i", "grpc", "-u", server.grpc, "--streaming")
    return {}


@call("perf_analyzer -i http", HTTP)
def http(server: Server) -> Answers:
    address = server.http if server.ca else server.http.partition("://")[2]
    measure(server, "-i", "http", "-u", address, *http_tls(server))
    return {}


@limitation("perf_analyzer --shared-memory system", GRPC)
def shared_memory(server: Server) -> Answers:
    measure(server, "-i", "grpc", "-u", server.grpc, "--shared-memory", "system", "--output-shared-memory-size", "4096")
    return {}

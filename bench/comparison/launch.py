"""Starts the compared servers and their clients, each in the server's own environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.processes import cpu_s, find_server, session_cpu_s
from bench.harness.servers import free_port, serving
from bench.harness.texts import ROOT

SERVERS_FOLDER = Path(__file__).resolve().parent / "servers"
ENVIRONMENTS = ROOT / "build/comparison"
_STUBS = ROOT / "proto/gen"
_CLIENTS = "bench.comparison"
_STOP_TIMEOUT_S = 20.0
# Maximum time of a startup or a load; an overloaded server takes half a minute to answer what was sent.
_LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Setting:
    """Batching of a server."""

    batch: int
    wait_ms: float

    def __str__(self) -> str:
        if self.batch == 1:
            return "no batching"
        return f"batches of up to {self.batch} texts, {self.wait_ms:g} ms wait"


@dataclass(frozen=True)
class Server:
    """A compared server, and the client that its users would choose.

    Attributes:
        name: Its folder in bench/comparison/servers and its environment in build/comparison.
        package: Its name on PyPI.
        protocol: Protocol and payload, in words.
        client: Module of its client in ``bench.comparison``.
        path: Path of its HTTP requests; empty for gRPC.
        command: Its command in its environment; ``{port}`` and ``{folder}`` are filled in.
    """

    name: str
    package: str
    protocol: str
    client: str
    path: str = ""
    command: tuple[str, ...] = field(default=("python", "{folder}/server.py"))

    @property
    def installed(self) -> bool:
        """Whether the environment exists."""
        return (ENVIRONMENTS / self.name / "bin/python").exists()

    @property
    def version(self) -> str:
        """The version in the environment."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        command = [self._bin("python"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @contextlib.contextmanager
    def serving(self, bundle: Path, variant: str, setting: Setting) -> Iterator[Load]:
        """Runs the server with all of its processes; yields its load generator."""
        # Some servers also use the next port, which is most likely free.
        port, folder = free_port(), SERVERS_FOLDER / self.name
        environment = self._environment() | {
            "COMPARISON_BUNDLE": str(bundle.resolve()),
            "COMPARISON_VARIANT": variant,
            "COMPARISON_PORT": str(port),
            "COMPARISON_BATCH": str(setting.batch),
            "COMPARISON_WAIT_MS": str(setting.wait_ms),
        }
        program, *flags = (one.format(port=port, folder=folder) for one in self.command)
        with (ENVIRONMENTS / f"{self.name}.log").open("w") as log, tempfile.TemporaryDirectory() as scratch:
            process = subprocess.Popen(
                [self._bin(program), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            try:
                target = f"127.0.0.1:{port}{self.path}"
                yield self.load(self.client, target, lambda: session_cpu_s(process.pid))
            finally:
                _stop(process)

    def load(self, client: str, target: str, server_cpu_s: Callable[[], float]) -> Load:
        """Returns a load generator that runs in the server's environment."""
        command = (self._bin("python"), "-m", f"{_CLIENTS}.{client}", target)
        return Load(command, self._environment(), server_cpu_s)

    def _bin(self, program: str) -> str:
        return str(ENVIRONMENTS / self.name / "bin" / program)

    def _environment(self) -> dict[str, str]:
        path = f"{ENVIRONMENTS / self.name / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # The server's folder comes first: the root has a folder `server`, which must not hide `server.py`.
        return _client_environment(SERVERS_FOLDER / self.name, ROOT, _STUBS) | {
            "PATH": path,
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@dataclass(frozen=True)
class Load:
    """A client's command without its load, its environment, and the CPU seconds that the server has used."""

    command: tuple[str, ...]
    environment: dict[str, str]
    server_cpu_s: Callable[[], float]

    def run(self, texts: Path, seconds: float, *flags: str) -> dict[str, float]:
        """Runs the client in its own process; returns its figures, and the server's CPU time per text."""
        before_s = self.server_cpu_s()
        found: dict[str, float] = self._run(str(texts.resolve()), "--seconds", str(seconds), *flags)
        used_s = self.server_cpu_s() - before_s
        return {**found, "server_cpu_ms_per_text": 1000 * used_s / found["answered"]}

    def answers(self, texts: Path, count: int) -> list[tuple[str, list[float] | None, float | None]]:
        """Waits until the server is ready; returns its answers to the first texts, with embeddings in base64."""
        found: list[tuple[str, list[float] | None, float | None]] = self._run(
            str(texts.resolve()), "--answers", str(count)
        )
        return found

    def _run(self, *flags: str) -> Any:
        command = [*self.command, *flags]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment, timeout=_LOAD_TIMEOUT_S
        )
        return json.loads(done.stdout)


@dataclass(frozen=True)
class Protocol:
    """A protocol of polyhead's server, and the client that measures it.

    Attributes:
        name: Name of its row.
        words: Protocol and payload, in words.
        client: Module of its client in ``bench.comparison``.
        path: Path of its HTTP requests; empty for gRPC.
        environment: The compared server in whose environment the client runs, so that both are measured by the same
            program; None for that of polyhead.
    """

    name: str
    words: str
    client: str
    path: str = ""
    environment: Server | None = None

    @property
    def installed(self) -> bool:
        """Whether the environment of the client exists."""
        return self.environment is None or self.environment.installed

    @contextlib.contextmanager
    def serving(self, bundle: Path, variant: str) -> Iterator[Load]:
        """Runs polyhead's server with its default settings; yields the load generator of this protocol."""
        http = f"127.0.0.1:{free_port()}"
        flags = (*_polyhead_flags(variant), *(("--http-listen", http) if self.path else ()))
        load = self.environment.load if self.environment else _polyhead_load
        with serving(bundle, *flags) as target:
            pid = find_server(target)
            yield load(self.client, http + self.path if self.path else target, lambda: cpu_s(pid))


@contextlib.contextmanager
def three_polyheads(bundle: Path, variant: str) -> Iterator[Load]:
    """Runs three polyhead servers side by side; the client requests one task from each."""
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(serving(bundle, *_polyhead_flags(variant))) for _ in range(3)]
        pids = list(map(find_server, targets))
        yield _polyhead_load("servers.three_servers.client", ",".join(targets), lambda: sum(map(cpu_s, pids)))


def sentence_transformers_offline(folder: Path, texts: Path) -> dict[str, float]:
    """Returns texts per second of sentence-transformers over the whole list."""
    python = str(ENVIRONMENTS / "sentence_transformers/bin/python")
    module = f"{_CLIENTS}.servers.sentence_transformers.offline"
    command = [python, "-m", module, str(folder.resolve()), str(texts.resolve())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_client_environment(ROOT))
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _polyhead_flags(variant: str) -> tuple[str, ...]:
    return ("--engine", "onnx", "--device", "cpu", "--variant", variant, "--served-name", "polyhead")


def _polyhead_load(client: str, target: str, server_cpu_s: Callable[[], float]) -> Load:
    return Load((sys.executable, "-m", f"{_CLIENTS}.{client}", target), _client_environment(ROOT), server_cpu_s)


def _client_environment(*path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "TOKENIZERS_PARALLELISM": "false"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates a server, then kills the remaining processes of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_HTTP_CLIENT = "http_client"
_MOSEC = Server(
    "mosec",
    "mosec",
    "HTTP, MessagePack",
    _HTTP_CLIENT,
    "/inference",
    ("python", "{folder}/server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
)
_MLSERVER = Server("mlserver", "mlserver", "gRPC, V2 protocol", "v2_client")
SERVERS: Sequence[Server] = (
    _MOSEC,
    _MLSERVER,
    Server("pytriton", "nvidia-pytriton", "gRPC, V2 protocol", "v2_client"),
    Server("litserve", "litserve", "HTTP, JSON with base64 embeddings", "servers.litserve.client"),
    Server("ray", "ray", "gRPC, polyhead's protocol", "analyze_client"),
    Server(
        "bentoml",
        "bentoml",
        "HTTP, JSON with base64 embeddings",
        "servers.bentoml.client",
        "",
        ("bentoml", "serve", "server:Polyhead", "--working-dir", "{folder}", "--host", "127.0.0.1", "--port", "{port}"),
    ),
)
POLYHEAD = Protocol("polyhead", "gRPC, polyhead's protocol", "analyze_client")
OTHER_PROTOCOLS: Sequence[Protocol] = (
    Protocol("polyhead, HTTP /v1/analyze", "HTTP, JSON", _HTTP_CLIENT, "/v1/analyze", _MOSEC),
    Protocol("polyhead, OpenAI", "HTTP, JSON with base64 embeddings", _HTTP_CLIENT, "/v1/embeddings", _MOSEC),
    Protocol("polyhead, Open Inference gRPC", "gRPC, V2 protocol", "v2_client", environment=_MLSERVER),
    Protocol("polyhead, tei.v1", "gRPC, text-embeddings-inference's protocol", "tei_client"),
)

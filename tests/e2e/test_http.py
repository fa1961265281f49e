"""The HTTP API and the dialects of a real server: the same answers, TLS, workers, reload and drain under load."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from polyhead_client import Client
from polyhead_server.rpc.dialects.descriptors import TYPES

from bench.harness.servers import free_port
from tests.support.certificates import Authority
from tests.support.demo import BIN
from tests.support.polling import wait_until

from .conftest import START_S, Server, Start, put

pytestmark = pytest.mark.model
TEXTS = ["Where is my refund?", "The parcel came a day late, but wow, the quality!", "Love it"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def post(address: str, path: str, body: Any, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    host, port = address.split(":")
    connection = (
        http.client.HTTPSConnection("localhost", int(port), context=context, timeout=START_S)
        if context
        else http.client.HTTPConnection(host, int(port), timeout=START_S)
    )
    try:
        connection.request("POST" if body is not None else "GET", path, json.dumps(body).encode() if body else None)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def by_openai(address: str, texts: list[str]) -> Any:
    status, body = post(address, "/v1/embeddings", {"input": texts, "encoding_format": "base64"})
    assert status == 200
    return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in json.loads(body)["data"]])


def by_tei_http(address: str, texts: list[str]) -> Any:
    status, body = post(address, "/embed", {"inputs": texts})
    assert status == 200
    return np.asarray(json.loads(body), np.float32)


def by_oip_http(address: str, texts: list[str]) -> Any:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
    status, body = post(address, "/v2/models/demo/infer", {"inputs": [tensor], "outputs": [{"name": "embedding"}]})
    assert status == 200
    return np.asarray(json.loads(body)["outputs"][0]["data"], np.float32).reshape(len(texts), -1)


def by_analyze(address: str, texts: list[str]) -> Any:
    status, body = post(address, "/v1/analyze", {"texts": texts})
    assert status == 200
    return np.asarray([one["embedding"] for one in json.loads(body)["answers"]], np.float32)


def by_tei_grpc(target: str, texts: list[str]) -> Any:
    with grpc.insecure_channel(target) as channel:
        embed: Any = channel.stream_stream(
            "/tei.v1.Embed/EmbedStream",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=TYPES["tei.v1.EmbedResponse"].FromString,
        )
        requests = [TYPES["tei.v1.EmbedRequest"](inputs=text.encode()) for text in texts]
        return np.asarray([response.embeddings for response in embed(iter(requests))], np.float32)


def by_oip_grpc(target: str, texts: list[str]) -> Any:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "contents": contents}
    request = TYPES["inference.ModelInferRequest"](model_name="demo", inputs=[tensor], outputs=[{"name": "embedding"}])
    with grpc.insecure_channel(target) as channel:
        infer: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=TYPES["inference.ModelInferResponse"].FromString,
        )
        (data,) = infer(request).raw_output_contents
    return np.frombuffer(data, "<f4").reshape(len(texts), -1)


Call = Callable[[str, list[str]], Any]
HTTP: dict[str, Call] = {"openai": by_openai, "tei http": by_tei_http, "oip http": by_oip_http, "analyze": by_analyze}
GRPC: dict[str, Call] = {"tei grpc": by_tei_grpc, "oip grpc": by_oip_grpc}


@pytest.fixture
def serve(start: Start) -> Callable[..., tuple[Server, str]]:
    """Starts a server with HTTP; returns it and its HTTP address."""

    def run(served: Path, *flags: str) -> tuple[Server, str]:
        address = f"127.0.0.1:{free_port()}"
        server = start(served, "--http-listen", address, *flags)
        wait_until(lambda: ready(server, address), "the server is ready")
        return server, address

    return run


def ready(server: Server, address: str) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        return post(address, "/health", None)[0] == 200
    except OSError:
        # With TLS, or not listening yet.
        return "serving HTTP" in server.log.read_text() and "serving demo" in server.log.read_text()


def test_https_presents_the_certificate_of_the_current_files(serve: Any, demo_bundle: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files, renewed = authority.issue("first"), authority.issue("second")
    _, address = serve(demo_bundle, *files.flags)
    context = ssl.create_default_context(cafile=str(authority.cert))
    assert post(address, "/v1/analyze", {"texts": TEXTS}, context)[0] == 200
    with pytest.raises(ssl.SSLError):
        post(address, "/v1/analyze", {"texts": TEXTS}, ssl.create_default_context())

    def presented() -> bytes | None:
        with _connect(address, context) as connection:
            return connection.getpeercert(binary_form=True)

    before = presented()
    files.replace(renewed)
    wait_until(lambda: presented() != before, "the renewed certificate is presented")


def _connect(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, port = address.split(":")
    return context.wrap_socket(socket.create_connection((host, int(port)), START_S), server_hostname="localhost")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores")
def test_workers_share_the_address(serve: Any, demo_bundle: Path) -> None:
    server, address = serve(demo_bundle, "--workers", "2")
    wait_until(lambda: server.log.read_text().count("serving HTTP") == 2, "both workers serve HTTP")
    assert by_openai(address, TEXTS).shape == (3, 384)
    assert server.stop() == 0


class Load:
    """One protocol's calls without a pause, on new connections, until the server has gone."""

    def __init__(self, call: Callable[[str, list[str]], Any], address: str, expected: Any) -> None:
        self.counts: Counter[str] = Counter()
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(call, address, expected))
        self._thread.start()

    def _run(self, call: Callable[[str, list[str]], Any], address: str, expected: Any) -> None:
        while not self.over.is_set():
            try:
                correct = np.abs(call(address, TEXTS) - expected).max() < 1e-5
            except (OSError, AssertionError, grpc.RpcError, http.client.HTTPException) as error:
                self.counts[f"failed: {type(error).__name__}"] += 1
                time.sleep(0.01)
            else:
                self.counts["right" if correct else "wrong"] += 1

    def join(self) -> Counter[str]:
        self.over.set()
        self._thread.join()
        return self.counts


def test_every_protocol_gives_the_same_embeddings_through_a_reload_and_a_drain(
    serve: Any, demo_bundle: Path, twin: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    put(demo_bundle, served)
    admin = f"127.0.0.1:{free_port()}"
    server, address = serve(served, "--admin-listen", admin)
    with Client(server.target) as client:
        expected = client.embeddings(TEXTS)
        space = client.info().fingerprints.embedding_space
        loads = [Load(call, address, expected) for call in HTTP.values()]
        loads += [Load(call, server.target, expected) for call in GRPC.values()]
        wait_until(lambda: all(load.counts["right"] >= 5 for load in loads), "every protocol is answered")
        # The same graph under another fingerprint.
        put(twin, served)
        subprocess.run([BIN / "polyhead", "admin", "reload", "--force", "--target", admin], check=True)
        wait_until(lambda: client.info().fingerprints.embedding_space != space, "the bundle is reloaded")
        seen = [load.counts["right"] for load in loads]
        wait_until(
            lambda: all(load.counts["right"] > before + 5 for load, before in zip(loads, seen, strict=True)),
            "every protocol is answered after the reload",
        )
        failed = [load.counts.total() - load.counts["right"] for load in loads]
    assert failed == [0] * len(loads), [load.counts for load in loads]
    # From here on calls may be refused; none may be answered wrongly, and the server loses none that it accepted.
    code = server.stop()
    counts = [load.join() for load in loads]
    assert code == 0, server.log.read_text()[-2000:]
    assert not any(count["wrong"] for count in counts)
    assert "cut off" not in server.log.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_shows_the_model_in_a_browser(serve: Any, demo_bundle: Path, tmp_path: Path) -> None:
    _, address = serve(demo_bundle)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom", f"http://{address}/"]
    page = subprocess.run(command, check=True, capture_output=True, timeout=START_S).stdout.decode()
    assert "384 dimensions" in page
    assert "onnx on cpu" in page
    assert 'role="alert"></p>' in page

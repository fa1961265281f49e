"""A small real server for the client's tests, and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent import futures
from typing import Any, Protocol

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import inference_service_pb2_grpc as service_grpc
from polyhead_client import Answer, AsyncClient, Client, ModelInfo, Text

from tests.support.fake_server import FakeServicer


@contextlib.contextmanager
def served(
    credentials: grpc.ServerCredentials | None = None, max_message_bytes: int = 16 * 2**20
) -> Iterator[FakeServicer]:
    """A servicer behind a real server on a free port of the loopback; ``target`` says which."""
    servicer = FakeServicer()
    # 16 MiB as of the real server, by default; the port must be ours alone.
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
    service_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    servicer.health.set("polyhead.v1.InferenceService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
    free = "127.0.0.1:0"
    port = server.add_secure_port(free, credentials) if credentials else server.add_insecure_port(free)
    servicer.target = f"127.0.0.1:{port}"
    server.start()
    yield servicer
    servicer.gate.set()
    servicer.stalled_ended.set()
    server.stop(None).wait()


@pytest.fixture
def servicer() -> Iterator[FakeServicer]:
    """A servicer behind a real server."""
    with served() as servicer:
        yield servicer


@pytest.fixture
def two_servicers() -> Iterator[list[FakeServicer]]:
    """Two servers."""
    with served() as first, served() as second:
        yield [first, second]


class Face(Protocol):
    """What the tests ask of a client, sync or asyncio."""

    def analyze(self, texts: Iterable[Text], **options: Any) -> list[Answer]: ...

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]: ...

    def info(self) -> ModelInfo: ...

    def close(self) -> None: ...

    def dispose(self) -> None: ...


class SyncFace:
    def __init__(self, target: str, **options: Any) -> None:
        self.client = Client(target, **options)
        self.analyze = self.client.analyze
        self.info = self.client.info
        self.close = self.dispose = self.client.close

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]:
        answers: Iterator[Answer] = getattr(self.client, method)(texts, **options)
        return answers


class AsyncFace:
    """Runs the event loop while, and only while, a call is waited for."""

    def __init__(self, target: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._connected(target, options))

    async def _connected(self, target: str, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(target, **options)

    def analyze(self, texts: Iterable[Text], **options: Any) -> list[Answer]:
        return self.runner.run(self.client.analyze(texts, **options))

    def info(self) -> ModelInfo:
        return self.runner.run(self.client.info())

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]:
        given = texts if isinstance(texts, list | str) else _async(texts)
        return self._iterate(getattr(self.client, method)(given, **options))

    def _iterate(self, answers: Any) -> Iterator[Answer]:
        async def following() -> Answer | None:
            return await anext(answers, None)

        try:
            while (answer := self.runner.run(following())) is not None:
                yield answer
        finally:
            self.runner.run(answers.aclose())

    def close(self) -> None:
        self.runner.run(self.client.close())

    def dispose(self) -> None:
        self.close()
        self.runner.close()


async def _async(texts: Iterable[Text]) -> AsyncIterator[Text]:
    remaining = iter(texts)
    while (text := await asyncio.to_thread(next, remaining, None)) is not None:
        yield text


@pytest.fixture(params=[SyncFace, AsyncFace])
def connect(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes a client: ``connect(target, **options) -> Face``."""
    with contextlib.ExitStack() as opened:

        def connected(target: str, **options: Any) -> Face:
            face: Face = request.param(target, **options)
            opened.callback(face.dispose)
            return face

        yield connected


@pytest.fixture
def client(connect: Any, servicer: FakeServicer) -> Face:
    """A client of the server."""
    face: Face = connect(servicer.target)
    return face

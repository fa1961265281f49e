"""Who is let through over a real socket, and what those who are not get to know."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import inference_service as service_module
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import NAME, InferenceService, handler
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.request_decoder import RequestDecoder
from polyhead_server.security.api_keys import CALLER, Keys
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(60)

KEYS = {"reader": ["infer"], "probe": ["info"], "embedder": ["StreamEmbed"]}
INSIDE = "what only the model knows"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


class Guarded:
    """A server with keys, which counts what it parses.

    Attributes:
        parsed: Methods of whose messages one was parsed.
        callers: Names under which calls were answered.
        keys: The file of keys.
    """

    def __init__(self, channel: aio.Channel, keys: Path) -> None:
        # Bytes in and out: the stubs cannot say that.
        self.channel: Any = channel
        self.keys = keys
        self.parsed: list[str] = []
        self.callers: list[str] = []

    async def unary(self, metadata: Any, data: bytes | None = None, method: str = f"/{NAME}/Analyze") -> bytes:
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString() if data is None else data
        return bytes(await self.channel.unary_unary(method)(request, metadata=metadata))

    async def stream(self, metadata: Any, name: str = "StreamAnalyze") -> list[bytes]:
        request = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString()
        call = self.channel.stream_stream(f"/{NAME}/{name}")(iter([request]), metadata=metadata)
        return [answer async for answer in call]


@pytest.fixture
async def guarded(
    settings: Callable[..., Settings], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    path = tmp_path / "keys.toml"
    path.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nrights = {rights}\n'
            for name, rights in KEYS.items()
        )
    )
    path.chmod(0o600)
    parsed: list[str] = []
    callers: list[str] = []

    class Counting(RequestDecoder):
        def __call__(self, data: bytes) -> Any:
            parsed.append(type(self).__name__)
            return super().__call__(data)

    class Noting(Pipeline):
        async def submit(self, *args: Any, **kwargs: Any) -> Any:
            callers.append(CALLER.get())
            return await super().submit(*args, **kwargs)

    monkeypatch.setattr(service_module, "RequestDecoder", Counting)
    service = InferenceService(settings(), Metrics())
    server = aio.server(interceptors=[AuthInterceptor(Keys(path)), ErrorInterceptor(NAME)])
    health = Health()
    health.add_to(server)
    await health.set(serving=True, alive=True)
    server.add_generic_rpc_handlers((handler(service),))
    reflection.enable_server_reflection((NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline = Noting(model, settings())
    pipeline.start()
    service.serve(pipeline)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        guarded = Guarded(channel, path)
        guarded.parsed, guarded.callers = parsed, callers
        yield guarded
    await server.stop(None)
    await pipeline.close()


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


NO_KEYS: list[tuple[tuple[str, str], ...]] = [
    (),
    bearer("wrong"),
    bearer(""),
    bearer(hashlib.sha256(b"reader").hexdigest()),
    (("authorization", "Basic reader"),),
    (("authorization", "reader"),),
    (("authorization", ""),),
    (*bearer("reader"), *bearer("reader")),
]


@pytest.mark.parametrize("metadata", NO_KEYS)
async def test_call_without_a_valid_key_is_refused_in_the_same_words(guarded: Guarded, metadata: Any) -> None:
    expected = (grpc.StatusCode.UNAUTHENTICATED, 'no valid key; send one as metadata "authorization: Bearer KEY"')
    assert await refused(guarded.unary(metadata)) == expected
    assert await refused(guarded.stream(metadata)) == expected


async def test_nothing_is_parsed_for_a_call_that_is_refused(guarded: Guarded) -> None:
    large = pb2.AnalyzeRequest(items=[item_pb2.Item(text="w1 " * 1_000_000)]).SerializeToString()
    for metadata in (bearer("wrong"), bearer("probe")):
        await refused(guarded.unary(metadata))
        await refused(guarded.unary(metadata, large))
        await refused(guarded.stream(metadata))
    assert guarded.parsed == []
    await guarded.unary(bearer("reader"))
    await guarded.stream(bearer("reader"))
    assert len(guarded.parsed) == 2


async def test_right_key_for_another_method_is_refused(guarded: Guarded) -> None:
    denied = (grpc.StatusCode.PERMISSION_DENIED, "this key may not call this method")
    assert await refused(guarded.unary(bearer("probe"))) == denied
    assert await refused(guarded.stream(bearer("embedder"))) == denied
    assert await refused(guarded.unary(bearer("reader"), b"", f"/{NAME}/GetModelInfo")) == denied
    assert (
        await refused(guarded.unary(bearer("reader"), b"", f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"))
        == denied
    )
    assert await guarded.stream(bearer("embedder"), "StreamEmbed")
    assert await guarded.unary(bearer("reader"))


async def test_refusal_does_not_tell_which_methods_there_are(guarded: Guarded) -> None:
    for metadata in (bearer("wrong"), bearer("probe")):
        real = await refused(guarded.unary(metadata))
        for method in (f"/{NAME}/Nothing", "/polyhead.v1.AdminService/Reload", "/no.Such/Thing"):
            assert await refused(guarded.unary(metadata, b"", method)) == real


async def test_scheme_is_read_in_any_case(guarded: Guarded) -> None:
    assert await guarded.unary((("authorization", "bEaReR reader"),))


async def test_probes_need_no_key(guarded: Guarded) -> None:
    stub: Any = health_pb2_grpc.HealthStub(guarded.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving
    watch = stub.OutOfMemoryFilter(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving
    watch.cancel()


async def test_name_of_the_caller_is_known_to_all_that_answers(guarded: Guarded) -> None:
    await guarded.unary(bearer("reader"))
    await guarded.stream(bearer("embedder"), "StreamEmbed")
    assert guarded.callers == ["reader", "embedder"]


async def test_stream_outlives_the_removal_of_its_key(guarded: Guarded) -> None:
    request = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString()
    call = guarded.channel.stream_stream(f"/{NAME}/StreamAnalyze")(metadata=bearer("reader"))
    await call.write(request)
    assert await call.read() is not aio.EOF
    fresh = guarded.keys.with_suffix(".fresh")
    fresh.write_text("keys = []\n")
    fresh.chmod(0o600)
    fresh.rename(guarded.keys)
    assert (await refused(guarded.unary(bearer("reader"))))[0] is grpc.StatusCode.UNAUTHENTICATED
    await call.write(request)
    assert await call.read() is not aio.EOF
    await call.done_writing()
    assert await call.read() is aio.EOF


async def test_answers_hold_nothing_of_the_inside(guarded: Guarded, engine: FakeEngine) -> None:
    engine.error = RuntimeError(INSIDE)
    key = bearer("reader")
    poisoned = pb2.AnalyzeRequest(items=[item_pb2.Item(text="poison")]).SerializeToString()
    answer = await guarded.unary(key, poisoned)
    # The control: the engine did fail.
    assert pb2.AnalyzeResponse.FromString(answer).answers[0].error.message.startswith("internal error, incident ")
    told = [answer, await guarded.unary(key, b"\xff\xff")]
    for call in (
        guarded.unary((), b"\xff\xff", "/grpc.health.v1.Health/Check"),
        guarded.unary((), b"\xff\xff", "/grpc.health.v1.Health/Watch"),
        guarded.unary((*key, ("grpc-timeout", "soon"))),
        guarded.unary((*key, ("grpc-encoding", "rot13"))),
        guarded.unary((*key, ("content-type", "text/html"))),
        guarded.unary(key, b"", f"/{NAME}/Nothing"),
        guarded.unary((("authorization", "Bearer"),)),
    ):
        try:
            told.append(await call)
        except aio.AioRpcError as error:
            told.append(f"{error.code()} {error.details()} {error.trailing_metadata()}".encode())
    for text in told:
        assert INSIDE.encode() not in text
        assert not any(
            word in text
            for word in (b"Traceback", b".py", b"Error(", b"google.protobuf", b"reader", str(guarded.keys).encode())
        )

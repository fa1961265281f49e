"""API keys over a real socket: which calls are admitted, and what a rejected caller learns."""

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
from polyhead_server.rpc import method_table, service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.rpc.request_decoder import RequestDecoder
from polyhead_server.security.api_keys import CALLER, Keys
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine

pytestmark = pytest.mark.timeout(60)

KEYS = {"reader": ["infer"], "probe": ["info"], "embedder": ["StreamEmbed"]}
INTERNAL_TEXT = "a text from inside the engine"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


class Guarded:
    """A server with API keys that records which messages it decodes.

    Attributes:
        decoded: One entry for each decoded message.
        callers: Name of the caller of each submitted message.
        keys: The key file.
        refresh: Reads the key file again.
    """

    def __init__(self, channel: aio.Channel, keys: Path) -> None:
        # Requests and responses are bytes, which the stubs' types do not allow.
        self.channel: Any = channel
        self.keys = keys
        self.decoded: list[str] = []
        self.callers: list[str] = []
        self.refresh: Callable[[], None]

    async def unary(
        self, metadata: Any, data: bytes | None = None, method: str = f"/{service_names.INFERENCE}/Analyze"
    ) -> bytes:
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString() if data is None else data
        return bytes(await self.channel.unary_unary(method)(request, metadata=metadata))

    async def stream(self, metadata: Any, name: str = "StreamAnalyze") -> list[bytes]:
        request = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString()
        method = self.channel.stream_stream(f"/{service_names.INFERENCE}/{name}")
        # A write that fails because the call has ended hides the status of the call (grpc/grpc#36066).
        for _ in range(20):
            try:
                return [answer async for answer in method(iter([request]), metadata=metadata)]
            except aio.AioRpcError as error:
                if "Internal error from Core" not in (error.details() or ""):
                    raise
        raise AssertionError("every write failed")


@pytest.fixture
async def guarded(
    settings: Callable[..., Settings], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    path = tmp_path / "keys.toml"
    path.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nscopes = {scopes}\n'
            for name, scopes in KEYS.items()
        )
    )
    path.chmod(0o600)
    decoded: list[str] = []
    callers: list[str] = []

    class Counting(RequestDecoder):
        def __call__(self, data: bytes) -> Any:
            decoded.append(type(self).__name__)
            return super().__call__(data)

    class Recording(Pipeline):
        async def submit(self, *args: Any, **kwargs: Any) -> Any:
            callers.append(CALLER.get())
            return await super().submit(*args, **kwargs)

    monkeypatch.setattr(method_table, "RequestDecoder", Counting)
    service = InferenceService(settings(), Metrics())
    accepted = Keys(path)
    server = aio.server(interceptors=[AuthInterceptor(accepted), ErrorInterceptor(service_names.INFERENCE)])
    health = Health()
    health.add_to(server)
    await health.set(serving=True, alive=True)
    server.add_generic_rpc_handlers((inference_handler(service),))
    reflection.enable_server_reflection((service_names.INFERENCE, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline = Recording(model, settings())
    pipeline.start()
    service.serve(pipeline)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        guarded = Guarded(channel, path)
        guarded.decoded, guarded.callers, guarded.refresh = decoded, callers, accepted.refresh
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
async def test_calls_without_a_valid_key_are_rejected_with_the_same_text(guarded: Guarded, metadata: Any) -> None:
    expected = (grpc.StatusCode.UNAUTHENTICATED, 'no valid API key; send one as metadata "authorization: Bearer KEY"')
    assert await refused(guarded.unary(metadata)) == expected
    assert await refused(guarded.stream(metadata)) == expected


async def test_messages_of_a_rejected_call_are_not_decoded(guarded: Guarded) -> None:
    large = pb2.AnalyzeRequest(items=[item_pb2.Item(text="w1 " * 1_000_000)]).SerializeToString()
    for metadata in (bearer("wrong"), bearer("probe")):
        await refused(guarded.unary(metadata))
        await refused(guarded.unary(metadata, large))
        await refused(guarded.stream(metadata))
    assert guarded.decoded == []
    await guarded.unary(bearer("reader"))
    await guarded.stream(bearer("reader"))
    assert len(guarded.decoded) == 2


async def test_valid_key_for_another_method_is_rejected(guarded: Guarded) -> None:
    denied = (grpc.StatusCode.PERMISSION_DENIED, "this API key may not call this method")
    assert await refused(guarded.unary(bearer("probe"))) == denied
    assert await refused(guarded.stream(bearer("embedder"))) == denied
    assert await refused(guarded.unary(bearer("reader"), b"", f"/{service_names.INFERENCE}/GetModelInfo")) == denied
    assert await guarded.stream(bearer("embedder"), "StreamEmbed")
    assert await guarded.unary(bearer("reader"))


async def test_rejection_does_not_reveal_which_methods_exist(guarded: Guarded) -> None:
    for metadata in (bearer("wrong"), bearer("probe")):
        real = await refused(guarded.unary(metadata))
        for method in (f"/{service_names.INFERENCE}/Nothing", "/polyhead.v1.AdminService/Reload", "/no.Such/Thing"):
            assert await refused(guarded.unary(metadata, b"", method)) == real


async def test_permission_denied_is_logged_with_the_name_of_the_key(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(guarded.unary(bearer("probe")))
    await refused(guarded.unary(bearer("reader"), b"", "/no.Such/" + "x" * 5_000))
    first, second = [record for record in caplog.records if record.name.endswith("interceptors.auth")]
    assert first.getMessage().startswith(
        f"permission denied: key probe may not call /{service_names.INFERENCE}/Analyze"
    )
    assert first.__dict__["fields"]["key"] == first.__dict__["limit_key"] == "probe"
    assert "key reader may not call /no.Such/xxx" in second.getMessage()
    assert len(second.getMessage()) < 500


async def test_call_without_a_valid_key_is_logged_without_what_it_sent(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(guarded.unary(bearer("wrong-key-of-a-stranger")))
    assert "rejected: no valid API key for /polyhead.v1.InferenceService/Analyze, from ipv" in caplog.text
    assert "wrong-key" not in caplog.text


async def test_scheme_is_case_insensitive(guarded: Guarded) -> None:
    assert await guarded.unary((("authorization", "bEaReR reader"),))


async def test_probes_need_no_key(guarded: Guarded) -> None:
    stub: Any = health_pb2_grpc.HealthStub(guarded.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving
    watch.cancel()


async def test_callers_name_is_available_to_the_pipeline(guarded: Guarded) -> None:
    await guarded.unary(bearer("reader"))
    await guarded.stream(bearer("embedder"), "StreamEmbed")
    assert guarded.callers == ["reader", "embedder"]


async def test_open_stream_survives_the_removal_of_its_key(guarded: Guarded) -> None:
    request = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="w1")]).SerializeToString()
    call = guarded.channel.stream_stream(f"/{service_names.INFERENCE}/StreamAnalyze")(metadata=bearer("reader"))
    await call.write(request)
    assert await call.read() is not aio.EOF
    fresh = guarded.keys.with_suffix(".fresh")
    fresh.write_text("keys = []\n")
    fresh.chmod(0o600)
    fresh.rename(guarded.keys)
    guarded.refresh()
    assert (await refused(guarded.unary(bearer("reader"))))[0] is grpc.StatusCode.UNAUTHENTICATED
    await call.write(request)
    assert await call.read() is not aio.EOF
    await call.done_writing()
    assert await call.read() is aio.EOF


async def test_responses_reveal_no_internals(guarded: Guarded, engine: FakeEngine) -> None:
    engine.error = RuntimeError(INTERNAL_TEXT)
    key = bearer("reader")
    poisoned = pb2.AnalyzeRequest(items=[item_pb2.Item(text="poison")]).SerializeToString()
    answer = await guarded.unary(key, poisoned)
    # The control: the engine did fail.
    assert pb2.AnalyzeResponse.FromString(answer).answers[0].error.message.startswith("internal error, incident ")
    responses = [answer, await guarded.unary(key, b"\xff\xff")]
    for call in (
        guarded.unary((), b"\xff\xff", "/grpc.health.v1.Health/Check"),
        guarded.unary((), b"\xff\xff", "/grpc.health.v1.Health/Watch"),
        guarded.unary((*key, ("grpc-timeout", "soon"))),
        guarded.unary((*key, ("grpc-encoding", "rot13"))),
        guarded.unary((*key, ("content-type", "text/html"))),
        guarded.unary(key, b"", f"/{service_names.INFERENCE}/Nothing"),
        guarded.unary((("authorization", "Bearer"),)),
    ):
        try:
            responses.append(await call)
        except aio.AioRpcError as error:
            responses.append(f"{error.code()} {error.details()} {error.trailing_metadata()}".encode())
    for text in responses:
        assert INTERNAL_TEXT.encode() not in text
        assert not any(
            word in text
            for word in (b"Traceback", b".py", b"Error(", b"google.protobuf", b"reader", str(guarded.keys).encode())
        )

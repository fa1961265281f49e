"""The handlers in Ray's gRPC proxy, on a server that replaces their functions as Ray Serve does, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2
from polyhead_server.errors import DrainingError
from polyhead_server.ray_serve import proxy
from polyhead_server.ray_serve.handler_calls import TIME_REMAINING
from polyhead_server.rpc.interceptors.errors import DETAILS_KEY
from polyhead_server.rpc.status import status

ANALYZE, STREAM = "/polyhead.v1.InferenceService/Analyze", "/polyhead.v1.InferenceService/StreamAnalyze"
HEALTH = "/grpc.health.v1.Health"


class Router:
    """Stands for Ray Serve: replaces the handlers' functions, and gives the answers of the test.

    Attributes:
        metadata: Those of the last call.
        responses: Those to every call.
        code: Status of every call.
        trailing: Trailing metadata of every call.
    """

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.responses: list[bytes] = [b"response"]
        self.code: grpc.StatusCode | None = None
        self.trailing: tuple[Any, ...] = ()
        self.registered: Any = None
        self.stream_function: Any = self.stream

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Does what ``ray.serve._private.grpc_util.gRPCGenericServer`` does."""
        (self.registered,) = handlers
        self.registered._method_handlers = {
            method: handler._replace(
                response_serializer=None,
                unary_unary=self.unary,
                unary_stream=self.stream,
                stream_unary=self.unary,
                stream_stream=self.route_stream,
            )
            for method, handler in self.registered._method_handlers.items()
        }

    def route_stream(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        responses: AsyncIterator[bytes] = self.stream_function(requests, context)
        return responses

    async def unary(self, request: bytes, context: Any) -> bytes:
        assert isinstance(request, bytes)
        self._end(context)
        return self.responses[0] if self.responses else b""

    async def stream(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            assert isinstance(request, bytes)
        for response in self.responses:
            yield response
        self._end(context)

    def _end(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        # Ray's own context reads these as well.
        assert context.peer()
        assert context.auth_context() is not None
        if self.code:
            context.set_code(self.code)
            context.set_details("Ray's own text")
            context.set_trailing_metadata(self.trailing)


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
async def channel(router: Router) -> AsyncIterator[aio.Channel]:
    proxy.add_inference_service(None, router)
    server = aio.server()
    server.add_generic_rpc_handlers((router.registered,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def call(channel: aio.Channel, method: str, **options: Any) -> list[bytes]:
    stream: Any = channel.stream_stream(method)
    unary: Any = channel.unary_unary(method)
    if method == STREAM:
        return [response async for response in stream(iter([b"request"]), **options)]
    return [await unary(b"request", **options)]


@pytest.mark.parametrize("method", [ANALYZE, STREAM])
async def test_messages_pass_as_bytes_with_the_deadline(channel: aio.Channel, router: Router, method: str) -> None:
    metadata = [("authorization", "Bearer key"), (TIME_REMAINING, "999")]
    assert await call(channel, method, timeout=20, metadata=metadata) == [b"response"]
    assert router.metadata["authorization"] == "Bearer key"
    # gRPC rounds the time limit up.
    assert 0 < float(router.metadata[TIME_REMAINING]) <= 21


@pytest.mark.parametrize("method", [ANALYZE, STREAM])
async def test_a_call_without_a_deadline_has_none(channel: aio.Channel, router: Router, method: str) -> None:
    await call(channel, method, metadata=[(TIME_REMAINING, "999")])
    assert TIME_REMAINING not in router.metadata


def reason(error: aio.AioRpcError) -> str:
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    if DETAILS_KEY not in trailing:
        return ""
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(trailing[DETAILS_KEY]).details[0].Unpack(info)
    return str(info.reason)


@pytest.mark.parametrize("method", [ANALYZE, STREAM])
@pytest.mark.parametrize(
    ("ray", "expected"),
    [
        # A replica that died.
        (grpc.StatusCode.INTERNAL, (grpc.StatusCode.UNAVAILABLE, "REPLICA_LOST")),
        # No replica, because the deployment failed.
        (grpc.StatusCode.UNAVAILABLE, (grpc.StatusCode.UNAVAILABLE, "NOT_READY")),
        # max_queued_requests
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")),
        # request_timeout_s
        (grpc.StatusCode.DEADLINE_EXCEEDED, (grpc.StatusCode.DEADLINE_EXCEEDED, "")),
        (grpc.StatusCode.NOT_FOUND, (grpc.StatusCode.NOT_FOUND, "")),
    ],
)
async def test_ray_s_own_statuses_become_those_that_clients_know(
    channel: aio.Channel, router: Router, method: str, ray: grpc.StatusCode, expected: tuple[grpc.StatusCode, str]
) -> None:
    router.responses, router.code = [], ray
    with pytest.raises(aio.AioRpcError) as error:
        await call(channel, method)
    assert (error.value.code(), reason(error.value)) == expected
    pushback = dict(error.value.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    assert bool(pushback) == (expected[1] == "OVERLOADED")


@pytest.mark.parametrize("method", [ANALYZE, STREAM])
async def test_a_replica_s_status_passes_unchanged(channel: aio.Channel, router: Router, method: str) -> None:
    router.responses, router.code = [b""], grpc.StatusCode.UNAVAILABLE
    router.trailing = ((DETAILS_KEY, status(DrainingError()).SerializeToString()), ("x-request-id", "1"))
    with pytest.raises(aio.AioRpcError) as error:
        await call(channel, method)
    assert (error.value.code(), reason(error.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert dict(error.value.trailing_metadata() or ())["x-request-id"] == "1"


async def test_the_empty_response_that_ends_a_stream_is_dropped(channel: aio.Channel, router: Router) -> None:
    router.responses = [b"one", b"two", b""]
    assert await call(channel, STREAM) == [b"one", b"two"]


async def test_a_client_that_does_not_read_is_not_read_from(channel: aio.Channel, router: Router) -> None:
    """Ray Serve takes requests and keeps responses without a limit; gRPC alone holds the client back."""
    taken = 0

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        responses: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def take() -> None:
            nonlocal taken
            async for request in requests:
                taken += 1
                responses.put_nowait(request)
            responses.put_nowait(None)

        task = asyncio.create_task(take())
        while (response := await responses.get()) is not None:
            yield response
        await task

    router.stream_function = echo
    stream: Any = channel.stream_stream(STREAM)
    message, count = b"x" * 100_000, 300
    call = stream(message for _ in range(count))
    previous = -1
    while taken == 0 or taken != previous:
        previous = taken
        await asyncio.sleep(0.5)
    # What fits into gRPC's windows.
    assert taken < count / 2
    assert [response async for response in call] == [message] * count
    assert taken == count


async def test_an_unknown_method_is_not_implemented(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as error:
        await call(channel, "/polyhead.v1.InferenceService/Other")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_health_watch_reports_serving_and_stays_open(channel: aio.Channel) -> None:
    watch: Any = channel.unary_stream(f"{HEALTH}/Watch", None, health_pb2.HealthCheckResponse.FromString)
    await channel.channel_ready()
    started = time.monotonic()
    statuses = watch(b"", timeout=2)
    assert (await statuses.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(aio.AioRpcError) as error:
        await statuses.read()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started > 1.9

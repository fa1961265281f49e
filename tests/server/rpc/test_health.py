"""The health service over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor

from tests.support.http2_client import Http2Client, frame

pytestmark = pytest.mark.timeout(120)

TIMEOUT_S = 20
STATUS = health_pb2.HealthCheckResponse
# The type stubs do not know List yet.
MESSAGES: Any = health_pb2


class HealthServer:
    """A health service that listens, and a client of it."""

    def __init__(self, health: Health, port: int, channel: aio.Channel) -> None:
        self.health = health
        self.port = port
        self.stub: Any = health_pb2_grpc.HealthStub(channel)

    async def check(self, name: str) -> int:
        response = await self.stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        return int(response.status)


@pytest.fixture
async def server() -> AsyncIterator[HealthServer]:
    health = Health()
    await health.set(serving=False, alive=False)
    grpc_server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    health.add_to(grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield HealthServer(health, port, channel)
    await grpc_server.stop(None)


async def test_each_name_has_its_own_status(server: HealthServer) -> None:
    assert [await server.check(name) for name in ("", service_names.INFERENCE)] == [STATUS.NOT_SERVING] * 2
    await server.health.set(serving=False, alive=True)
    statuses = {"": STATUS.SERVING, service_names.INFERENCE: STATUS.NOT_SERVING}
    assert {name: await server.check(name) for name in statuses} == statuses
    listed = await server.stub.List(MESSAGES.HealthListRequest(), timeout=TIMEOUT_S)
    assert {name: response.status for name, response in listed.statuses.items()} == statuses


async def test_unknown_name_is_not_found(server: HealthServer) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await server.check("other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watcher_receives_each_change_once(server: HealthServer) -> None:
    request = health_pb2.HealthCheckRequest(service=service_names.INFERENCE)
    call = server.stub.Watch(request, timeout=TIMEOUT_S)
    assert (await call.read()).status == STATUS.NOT_SERVING
    await server.health.set(serving=False, alive=True)
    await server.health.set(serving=True, alive=True)
    assert (await call.read()).status == STATUS.SERVING
    await server.health.set(serving=False, alive=False)
    assert (await call.read()).status == STATUS.NOT_SERVING
    call.cancel()


async def test_watcher_of_an_unknown_name_is_told_so(server: HealthServer) -> None:
    call = server.stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=TIMEOUT_S)
    assert (await call.read()).status == STATUS.SERVICE_UNKNOWN
    call.cancel()


async def test_watcher_that_does_not_read_delays_no_change(server: HealthServer) -> None:
    with Http2Client(server.port, window=0) as client:
        stream = client.open(f"{service_names.HEALTH}/Watch")
        client.send(stream, frame(b""))
        async with asyncio.timeout(TIMEOUT_S):
            # Flow control does not hold headers back. Once they are here, the server writes the first status.
            while not client.outcome(stream).headers:
                await asyncio.to_thread(client.receive, 0.1)
            await server.health.set(serving=True, alive=True)
            assert [await server.check(name) for name in ("", service_names.INFERENCE)] == [STATUS.SERVING] * 2
            await server.health.set(serving=False, alive=False)
            assert await server.check("") == STATUS.NOT_SERVING


async def ended_with(call: Any) -> str:
    """Returns the name of the status code with which a watch ends."""
    async with asyncio.timeout(TIMEOUT_S):
        return str((await call.code()).name)


@contextlib.asynccontextmanager
async def serving(health: Health) -> AsyncIterator[int]:
    grpc_server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    health.add_to(grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    yield port
    await grpc_server.stop(None)


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[Any]:
    async with aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def watches(stub: Any, number: int) -> list[Any]:
    """Watches several times, one after the other, and returns the calls once each has received a status."""
    calls = []
    for _ in range(number):
        calls.append(stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S))
        await calls[-1].read()
    return calls


async def test_excess_watch_of_a_connection_ends_its_oldest() -> None:
    async with (
        serving(Health(max_watches_per_connection=3)) as port,
        connection(port) as stub,
        connection(port) as other,
    ):
        (unaffected,) = await watches(other, 1)
        calls = await watches(stub, 5)
        assert [await ended_with(call) for call in calls[:2]] == ["UNAVAILABLE"] * 2
        assert [call.done() for call in (*calls[2:], unaffected)] == [False] * 4
        for call in calls[2:]:
            call.cancel()
        # Ended watches do not count.
        await watches(stub, 2)


async def test_excess_watch_ends_one_of_the_connection_with_the_most() -> None:
    async with serving(Health(max_watches=4)) as port, connection(port) as many, connection(port) as few:
        calls = await watches(many, 4)
        (own,) = await watches(few, 1)
        assert await ended_with(calls[0]) == "UNAVAILABLE"
        assert not own.done()


async def test_watch_has_a_limited_duration() -> None:
    async with serving(Health(max_watch_s=2.0)) as port, connection(port) as stub:
        (call,) = await watches(stub, 1)
        assert await ended_with(call) == "UNAVAILABLE"


@pytest.mark.parametrize("max_watch_s", [0.05, 60.0])
async def test_connection_whose_watch_is_not_read_is_closed(
    max_watch_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    health = Health(max_watch_s=max_watch_s, write_timeout_s=0.05 if max_watch_s > 1 else 60.0)
    async with serving(health) as port, connection(port) as other:

        def watch() -> bool:
            with Http2Client(port, window=0) as client:
                stream = client.open(f"{service_names.HEALTH}/Watch")
                client.send(stream, frame(b""))
                client.finish(stream)
                return client.closed

        assert await asyncio.to_thread(watch)
        await other.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert caplog.records == []

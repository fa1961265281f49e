"""The health service over a real socket."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor

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


async def watch_without_reading(port: int) -> asyncio.StreamWriter:
    """Watches the health of the whole server over HTTP/2 with a flow-control window of 0 bytes."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def header(name: str, value: str) -> bytes:
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    writer.write(frame(4, 0, 0, struct.pack(">HI", 4, 0)))
    writer.write(frame(1, 4, 1, b"".join(header(*pair) for pair in headers.items())))
    writer.write(frame(0, 1, 1, bytes(5)))
    # Flow control does not hold headers back. Once they are here, the server writes the first status.
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            length, kind, _, _ = struct.unpack(">IBBI", b"\0" + await reader.readexactly(9))
            await reader.readexactly(length)
            if kind == 1:
                return writer


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
    writer = await watch_without_reading(server.port)
    async with asyncio.timeout(TIMEOUT_S):
        await server.health.set(serving=True, alive=True)
        assert [await server.check(name) for name in ("", service_names.INFERENCE)] == [STATUS.SERVING] * 2
        await server.health.set(serving=False, alive=False)
        assert await server.check("") == STATUS.NOT_SERVING
    writer.close()

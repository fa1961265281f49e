"""Services of libraries behind the error interceptor: their responses pass, their exceptions do not reach clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def channel() -> AsyncIterator[Any]:
    server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    health = Health()
    health.add_to(server)
    await health.set(serving=True, alive=True)
    reflection.enable_server_reflection((service_names.INFERENCE, service_names.REFLECTION), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def test_health_and_reflection_responses_are_unchanged(channel: Any) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(service=service_names.INFERENCE))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="unknown"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")] * 2
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert [len(answer.list_services_response.service) for answer in answers] == [2, 2]


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        f"{service_names.REFLECTION}/ServerReflectionInfo",
    ],
)
async def test_malformed_message_is_rejected_with_the_servers_own_text(method: str, channel: Any) -> None:
    call = channel.stream_stream(f"/{method}")(iter([b"\xff\xff"]))
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the message is not a valid protobuf message of this RPC"
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.reason == "MALFORMED_MESSAGE"

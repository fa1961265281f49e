"""A server that speaks the dialects over a real socket, with the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import aio
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.dialects import handlers
from polyhead_server.rpc.dialects.descriptors import METHODS, TYPES
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

DIALECTS = ["oip", "tei"]


class DialectServer:
    """A server, and calls of any method by its service and name."""

    def __init__(self, service: InferenceService, channel: aio.Channel) -> None:
        self.service = service
        self.channel = channel
        self.ready = True

    def call(self, path: str, request: Any = None, **options: Any) -> Any:
        """Calls a method such as ``tei.v1.Embed/Embed``; an iterable is sent as a stream, bytes as they are."""
        service, name = path.split("/")
        (method,) = [one for one in METHODS[service] if one.name == name]
        kind: Any = {
            (False, False): self.channel.unary_unary,
            (True, True): self.channel.stream_stream,
            (True, False): self.channel.stream_unary,
        }[method.client_streaming, method.server_streaming]
        response_type = TYPES[method.output_type.removeprefix(".")]
        if request is None or isinstance(request, dict):
            request = TYPES[method.input_type.removeprefix(".")](**(request or {}))
        elif isinstance(request, list):
            request = iter(request)
        return kind(f"/{path}", _serialize, response_type.FromString)(request, **options)


async def refusal(call: Any) -> tuple[str, str]:
    """Returns the code and the message with which a call fails."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, str(caught.value.details())


async def read_until_error(call: Any) -> tuple[list[Any], str]:
    """Returns the responses of a stream and the code with which it then fails."""
    responses: list[Any] = []

    async def read() -> None:
        async for response in call:
            responses.append(response)  # noqa: PERF401 - those before the error are kept

    code, _ = await refusal(read())
    return responses, code


def _serialize(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


@pytest.fixture
async def loading(settings: Callable[..., Settings]) -> AsyncIterator[DialectServer]:
    """A server whose model is still loading."""
    values = settings(max_items_per_message=8)
    service = InferenceService(values, Metrics())
    server = aio.server(interceptors=[ErrorInterceptor(*handlers.services(DIALECTS))])
    port = server.add_insecure_port("127.0.0.1:0")
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        dialects = DialectServer(service, channel)
        backend = Backend(service, values, lambda: dialects.ready and service.pipeline is not None)
        server.add_generic_rpc_handlers(tuple(handlers.handlers(DIALECTS, Models([backend]))))
        await server.start()
        yield dialects
    await server.stop(None)


@pytest.fixture
async def running(
    loading: DialectServer, model: Model, settings: Callable[..., Settings]
) -> AsyncIterator[DialectServer]:
    """A server with one compute thread and the fake engine."""
    pipeline = Pipeline(model, settings(), loading.service.metrics.observe_batches)
    pipeline.start()
    loading.service.serve(pipeline)
    yield loading
    await pipeline.close()

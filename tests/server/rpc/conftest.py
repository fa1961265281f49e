"""Fixtures of the gRPC edge's tests: an inference service on a real socket, without and with a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from grpc import aio
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.settings import Settings

from tests.support.inference_server import InferenceServer


@pytest.fixture
async def loading(settings: Callable[..., Settings]) -> AsyncIterator[InferenceServer]:
    """A server whose model is still loading."""
    service = InferenceService(settings(stream_window=8), Metrics())
    server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    server.add_generic_rpc_handlers((inference_handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield InferenceServer(service, channel)
    await server.stop(None)


@pytest.fixture
async def running(
    loading: InferenceServer, model: Model, settings: Callable[..., Settings]
) -> AsyncIterator[InferenceServer]:
    """A server with one compute thread and the fake engine."""
    pipeline = Pipeline(model, settings(), loading.service.metrics.observe_batches)
    pipeline.start()
    loading.service.serve(pipeline)
    yield loading
    await pipeline.close()

"""An HTTP server with the fake engine, on a real socket, and a client of a few lines."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from polyhead_server.http.api import create_app
from polyhead_server.http.listener import HttpListener
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings


@dataclass
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HttpServer:
    """A server and its address."""

    service: InferenceService
    models: Models
    address: str
    ready: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    async def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Makes a call; a body that is neither bytes nor None is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return await asyncio.to_thread(self._request, method, path, data, self.headers | (headers or {}))

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        return await self.request("POST", path, body, headers)

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        return await self.request("GET", path, None, headers)


@pytest.fixture
async def loading(settings: Callable[..., Settings]) -> AsyncIterator[HttpServer]:
    """A server whose model is still loading."""
    values = settings(max_items_per_message=8, max_message_bytes=100_000, stream_window=16)
    service = InferenceService(values, Metrics())
    server: HttpServer
    models = Models([Backend(service, values, lambda: server.ready and service.pipeline is not None)])
    app = create_app(models, None, ["polyhead", "openai", "tei", "oip"], with_playground=True)
    listener = HttpListener(app, None, max_connections=50)
    server = HttpServer(service, models, await listener.listen("127.0.0.1:0", shares_port=False))
    yield server
    await listener.close(1)


@pytest.fixture
async def running(loading: HttpServer, model: Model, settings: Callable[..., Settings]) -> AsyncIterator[HttpServer]:
    """A server with one compute thread and the fake engine."""
    pipeline = Pipeline(model, settings(), loading.service.metrics.observe_batches)
    pipeline.start()
    loading.service.serve(pipeline)
    yield loading
    await pipeline.close()

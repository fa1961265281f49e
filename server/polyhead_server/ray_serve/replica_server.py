"""The server inside of one replica: one model, its pipeline, and both transports of it; knows nothing of Ray."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from polyhead_server.collection.collector import Collector
from polyhead_server.errors import NotReadyError
from polyhead_server.inference.intake import Intake
from polyhead_server.inference.model import load_model
from polyhead_server.interpreter import configure_interpreter
from polyhead_server.lifecycle.http_listener import http_app
from polyhead_server.lifecycle.model_loader import ModelLoader
from polyhead_server.lifecycle.pipeline_start import start_pipeline
from polyhead_server.observability.logging import configure
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.tracing import Tracing
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.rpc.model_routes import ModelRoutes
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

from .autoscaling import QUEUED_TOKENS, UTILIZATION
from .handler_calls import HandlerCalls

if TYPE_CHECKING:
    from polyhead_server.http.api import App


class ReplicaServer:
    """Loads a model and answers with it. Belongs to the event loop that creates it.

    Attributes:
        calls: Runs the calls of ``polyhead.v1`` and of the health service.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepares the server.

        Raises:
            StartupError: A setting or the key file is invalid.
        """
        configure(settings.log_level, settings.log_format)
        configure_interpreter()
        self._settings = settings
        self._metrics = Metrics()
        self._tracing = Tracing.from_settings(settings)
        self._collector = Collector.from_settings(settings, self._metrics)
        self._service = InferenceService(settings, self._metrics)
        if self._collector:
            self._service.observe(self._collector.observe)
        self._health = Health()
        self._models = Models([Backend(self._service, settings, lambda: self._health.serving)])
        self._utilization = _Utilization(self._metrics)
        interceptors = [
            TelemetryInterceptor(settings, self._metrics, self._tracing),
            *AuthInterceptor.from_settings(settings),
            ErrorInterceptor(
                service_names.INFERENCE,
                max_message_bytes=settings.max_message_bytes,
                request_timeout_s=settings.request_timeout_s,
            ),
        ]
        handlers = _Handlers()
        self._health.add_to(handlers)  # type: ignore[arg-type]
        self.calls = HandlerCalls(
            [ModelRoutes(self._models, {self._models.default: inference_handler(self._service)}), *handlers.generic],
            interceptors,
            settings.max_message_bytes,
        )

    async def start(self) -> None:
        """Loads and tests the model, then answers with it.

        Raises:
            StartupError: The model cannot be served.
        """
        settings = self._settings
        model = await ModelLoader(lambda loading: load_model(settings, loading), settings.start_timeout_s).load()
        pipeline = start_pipeline(model, settings, self._metrics, self._tracing)
        self._service.serve(pipeline)
        await self._health.set(serving=True, alive=True)

    def http_app(self) -> App:
        """Returns the HTTP API.

        Raises:
            StartupError: The key file is invalid.
        """
        return http_app(self._models, self._settings)

    @property
    def pipeline(self) -> Intake:
        """The pipeline that answers.

        Raises:
            NotReadyError: The model has not been loaded.
        """
        if (pipeline := self._service.pipeline) is None:
            raise NotReadyError
        return pipeline

    async def check_health(self) -> None:
        """Checks that the pipeline can answer.

        Raises:
            RuntimeError: It has failed permanently; names the reason.
        """
        if reason := self.pipeline.failure_reason():
            await self._health.set(serving=False, alive=False)
            raise RuntimeError(f"the engine failed permanently: {reason}")

    def autoscaling_stats(self) -> dict[str, float]:
        """Returns the tokens that wait, and the part of the compute threads that was busy since the last call."""
        pipeline = self.pipeline
        return {
            QUEUED_TOKENS: float(pipeline.queue_state().pending_tokens),
            UTILIZATION: self._utilization.since_last(pipeline.threads),
        }

    async def close(self) -> None:
        """Answers what was accepted, for as long as ``drain_timeout_s`` allows, and ends the compute threads."""
        await self._health.set(serving=False, alive=False)
        self._service.drain()
        if self._service.pipeline and await self._service.wait_idle(self._settings.drain_timeout_s):
            await self._service.pipeline.close()
        if self._collector:
            await self._collector.close()
        if self._tracing:
            await self._tracing.close()


class _Utilization:
    """The part of the compute threads that is busy, between two readings."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._busy_s, self._read_at = 0.0, time.monotonic()

    def since_last(self, threads: int) -> float:
        busy_s, now = self._metrics.value("polyhead_batch_duration_seconds_sum"), time.monotonic()
        busy_s, self._busy_s = busy_s - self._busy_s, busy_s
        elapsed_s, self._read_at = now - self._read_at, now
        return min(1.0, busy_s / max(threads * elapsed_s, 1e-9))


class _Handlers:
    """Takes the handlers that generated code registers with a server."""

    def __init__(self) -> None:
        self.generic: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        self.generic += handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Ignores them: they are the generic ones again."""

"""Life of one server process: bind, load, self-test, serve; drain and exit on SIGTERM or SIGINT.

::

    bind (health NOT_SERVING) -> load, self-test -> SERVING -> signal or engine failure -> NOT_SERVING, drain -> exit

One of several workers binds after the self-test, so that the kernel gives no connection to a worker that is not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from grpc import aio
from grpc_reflection.v1alpha import reflection

from polyhead_server.addresses import exclusive, require_local, split_address, unix_path
from polyhead_server.background import BackgroundTasks
from polyhead_server.collection.collector import Collector
from polyhead_server.inference.model import Model
from polyhead_server.observability.scrape_server import listen_for_scrapes
from polyhead_server.observability.tracing import Tracing
from polyhead_server.process_reports import ModelIdentity
from polyhead_server.rpc import service_names
from polyhead_server.rpc.admin_service import AdminServer, listen
from polyhead_server.rpc.dialects import handlers
from polyhead_server.rpc.dialects.descriptors import reflection_pool
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.rpc.model_routes import ModelRoutes
from polyhead_server.rpc.server_options import inference_options
from polyhead_server.security.tls import Certificates
from polyhead_server.settings import Settings

from . import stop_signals
from .compatibility import identity_of, require_compatible
from .engine_connection import EngineConnection
from .http_listener import http_listener
from .model_loader import result_of
from .model_unit import ModelUnit, create_units
from .operations import ProcessOperations
from .single_process import SingleProcess
from .watchdog import wait_for_failure

logger = logging.getLogger(__name__)

# Seconds for the last responses to leave after the last inference call has ended.
_FLUSH_S = 1.0
# Seconds for calls whose answer has left to end, at a second signal.
_END_OF_CALL_S = 0.1
# Calls may continue for this long before clients are redirected. It is short enough that no client retries in vain too
# often meanwhile.
_REDIRECT_DELAY_S = 0.3


@dataclass(frozen=True)
class WorkerRole:
    """The part that a process plays as one of several workers that share a port.

    Attributes:
        serving_identity: Identity of the model that the other workers serve, which this worker's model must be
            compatible with; None if no worker serves yet.
        drained: Whether an operator had drained the server before this worker started.
        on_serving: Called when this worker serves, with the identity of its model and the operations that the
            supervisor may run on it.
        engine_socket: For a front, the socket of the engine process, which has the model; None for a worker that has
            one of its own.
        bundle: The bundle that the server has promoted to; None for that of the command line.
    """

    serving_identity: ModelIdentity | None
    drained: bool
    on_serving: Callable[[ModelIdentity, ProcessOperations], None]
    engine_socket: Path | None = None
    bundle: Path | None = None


async def serve(settings: Settings, stop: asyncio.Event | None = None, worker: WorkerRole | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the process at once.

    Args:
        settings: Settings of the server.
        stop: Stops the server as a signal does.
        worker: Set for one of several workers. Its supervisor handles the signals sent to the server, reloads and the
            admin service.

    Returns:
        The exit code: 0 if everything that was accepted was answered; 1 if work was cut off or the engine failed
        permanently.

    Raises:
        StartupError: The address is taken, a certificate or key file is invalid, or the model cannot be served.
    """
    require_local(settings.admin_listen)
    async with contextlib.AsyncExitStack() as stack:
        # Before anything else, so that a second server never disturbs the socket of the first.
        address = settings.listen if worker else stack.enter_context(exclusive(settings.listen))
        return await _Process(settings, stop or asyncio.Event(), worker).run(address, stack)


class _Process:
    """A server process, on its own or as one of several workers."""

    def __init__(self, settings: Settings, stop: asyncio.Event, worker: WorkerRole | None) -> None:
        self._settings = settings
        self._stop = stop
        self._cut_off = asyncio.Event()
        self._worker = worker
        self._health = Health()
        self._certificates = Certificates.from_settings(settings)
        self._tracing = Tracing.from_settings(settings)
        self._units, self._models = create_units(settings, self._health, self._tracing)
        # What the models of a process share is reached through the first one.
        self._metrics, self._service = self._units[0].metrics, self._units[0].service
        if self._certificates:
            self._certificates.observe(self._metrics.certificate_expiry())
        self._collector = Collector.from_settings(settings, self._metrics)
        if self._collector:
            for unit in self._units:
                unit.service.observe(self._collector.observe)
        dialects = settings.enabled_dialects
        self._http = http_listener(self._models, settings, self._certificates)
        # Telemetry is outermost, so that refused calls are counted too.
        telemetry = TelemetryInterceptor(settings, self._metrics, self._tracing, handlers.paths(dialects))
        errors = ErrorInterceptor(
            service_names.INFERENCE,
            *handlers.services(dialects),
            max_message_bytes=settings.max_message_bytes,
            request_timeout_s=settings.request_timeout_s,
            held_bytes=self._service.held_bytes,
        )
        interceptors = [telemetry, *AuthInterceptor.from_settings(settings), errors]
        options = inference_options(settings, shares_port=bool(worker))
        self._server = aio.server(interceptors=interceptors, options=options)
        self._admin = SingleProcess(self._units, self._models)
        self._background = BackgroundTasks()

    async def run(self, address: str, stack: contextlib.AsyncExitStack) -> int:
        self._close_after(stack)
        stack.push_async_callback(self._server.stop, None)
        self._handle_signals(stack)
        for unit in self._units:
            self._background.start(unit.sample())
        await self._health.set(serving=False, alive=False)
        dialects = self._settings.enabled_dialects
        if "polyhead" in dialects:
            by_model = {unit.backend: inference_handler(unit.service) for unit in self._units}
            self._server.add_generic_rpc_handlers((ModelRoutes(self._models, by_model),))
        self._server.add_generic_rpc_handlers(tuple(handlers.handlers(dialects, self._models)))
        self._health.add_to(self._server)
        if not self._settings.no_reflection:
            names = [service_names.HEALTH, service_names.REFLECTION, *handlers.services(dialects)]
            if "polyhead" in dialects:
                names.append(service_names.INFERENCE)
            reflection.enable_server_reflection(names, self._server, pool=reflection_pool())
        if not self._worker:
            address = await self._listen(address)
            await self._listen_for_http(stack)
            stack.push_async_callback(self._admin.close)
            admin = AdminServer(self._settings, self._admin, self._admin.candidates, self._health)
            stack.push_async_callback(admin.close)
            await admin.open()
        if not await self._load_first_models():
            return 0
        drained = self._units[0].operations.drained or bool(self._worker and self._worker.drained)
        await self._health.set(serving=not drained, alive=True)
        if self._worker:
            address = await self._listen(address)
            await self._listen_for_http(stack)
            self._worker.on_serving(identity_of(self._service.require_model()), self._units[0].operations)
        logger.info("serving %s on %s", ", ".join(map(_description, self._units)), address)
        if await self._serve_until_stopped():
            return await self._drain()
        await self._drain(join_threads=False)
        return 1

    def _close_after(self, stack: contextlib.AsyncExitStack) -> None:
        """Closes what takes the last spans and texts after everything else."""
        if self._tracing:
            stack.push_async_callback(self._tracing.close)
        if self._collector:
            stack.push_async_callback(self._collector.close)

    async def _listen(self, address: str) -> str:
        address = await listen(self._server, address, self._certificates)
        if not unix_path(address):
            self._background.start(self._service.held_bytes.watch(split_address(address)[1]))
        return address

    async def _listen_for_http(self, stack: contextlib.AsyncExitStack) -> None:
        if self._http:
            http_address = self._settings.http_listen
            if not self._worker:
                http_address = stack.enter_context(exclusive(http_address))
            stack.push_async_callback(self._http.close, _FLUSH_S)
            http_address = await self._http.listen(http_address, shares_port=bool(self._worker))
            logger.info("serving HTTP on %s", http_address)

    def _handle_signals(self, stack: contextlib.AsyncExitStack) -> None:
        # A worker's supervisor kills it; a service manager may signal every process of the server in addition.
        timeout_s, ignore_second = self._settings.drain_timeout_s, bool(self._worker)
        stack.enter_context(stop_signals.handled(self._on_stop_signal, timeout_s, ignore_second=ignore_second))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_stop_signal(self) -> None:
        if self._stop.is_set() and not self._worker:
            logger.warning("second signal: running work is cut off")
            self._cut_off.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        if not self._worker:
            self._background.start(self._admin.reload_and_log())

    async def _serve_until_stopped(self) -> bool:
        """Serves until a request to stop; returns False if the engine failed permanently before that."""
        failed = await stop_signals.ended_before(self._stop, wait_for_failure(lambda: _Pipelines(self._units)))
        if failed is None:
            return True
        logger.error("the engine failed permanently: %s; exiting so that the process is restarted", failed.result())
        return False

    async def _load_first_models(self) -> bool:
        """Loads the models and answers with them; returns False after a request to stop before it was ready."""
        if self._worker and self._worker.engine_socket:
            return await self._connect_to_engine(self._worker.engine_socket)
        if self._settings.metrics_listen:
            for unit in self._units:
                self._background.start(unit.report_drift())
            listen_for_scrapes(self._settings.metrics_listen, self._metrics.registry)
        load = await stop_signals.ended_before(self._stop, self._load_models())
        if load is None:
            return False
        for unit, model in zip(self._units, result_of(load), strict=True):
            if self._worker:
                require_compatible(self._settings, self._worker.serving_identity, model)
            unit.serve(model)
            self._background.start(unit.watch())
        return True

    async def _load_models(self) -> list[Model]:
        """Loads one model after the other. None answers before all are ready, which would disturb the measurements."""
        bundle = self._worker.bundle if self._worker else None
        return [await unit.load(bundle) for unit in self._units]

    async def _connect_to_engine(self, engine_socket: Path) -> bool:
        """Waits for the engine process and answers with its model; returns False after a request to stop before."""
        connection = EngineConnection(engine_socket, self._settings, self._service, self._tracing)
        self._background.start(connection.run())
        return await stop_signals.ended_before(self._stop, connection.serving.wait()) is not None

    async def _drain(self, *, join_threads: bool = True) -> int:
        """Answers what was accepted, for as long as ``--drain-timeout-s`` allows; returns the exit code.

        Args:
            join_threads: Whether to wait for the compute threads to end; a thread that hangs never would.
        """
        deadline = time.monotonic() + self._settings.drain_timeout_s
        logger.info("draining for at most %g s", self._settings.drain_timeout_s)
        await self._health.set(serving=False, alive=False)
        cut_off = asyncio.create_task(self._cut_off.wait())
        # Load balancers poll the health service and send calls until they have seen the change.
        await asyncio.wait({cut_off}, timeout=min(self._settings.drain_delay_s, self._settings.drain_timeout_s))
        for unit in self._units:
            unit.service.drain()
        idle = asyncio.create_task(self._service.wait_idle(max(0.0, deadline - time.monotonic())))
        await asyncio.wait({cut_off, cast(Any, idle)}, timeout=_REDIRECT_DELAY_S, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done() and not cut_off.done():
            # Redirects clients on these connections (GOAWAY); running calls continue. Not earlier, because a stopping
            # server answers CANCELLED to calls whose handler has not started.
            self._background.start(self._server.stop(self._settings.drain_timeout_s))
        await asyncio.wait({cut_off, cast(Any, idle)}, return_when=asyncio.FIRST_COMPLETED)
        # A call that has been answered may still be ending.
        await asyncio.wait({idle}, timeout=_END_OF_CALL_S)
        # Not the number of calls that are running now: those that come later are counted until they are refused.
        if idle.done() and idle.result():
            # The grace period lets the last responses leave. It also bounds endless streams of other services, such as
            # Health.Watch.
            await self._server.stop(_FLUSH_S)
            if join_threads:
                await asyncio.gather(*(unit.pipeline.close() for unit in self._units if unit.pipeline))
            logger.info("stopped")
            return 0
        queued = sum(unit.pipeline.queue_state().items for unit in self._units if unit.pipeline)
        logger.error("cut off: %d calls, %d texts in the queue", self._service.calls_in_progress, queued)
        return 1


class _Pipelines:
    """The pipelines of all models, any of which may fail permanently."""

    def __init__(self, units: Sequence[ModelUnit]) -> None:
        self._units = units

    def failure_reason(self) -> str | None:
        """Why one of them cannot answer any more; None while all can."""
        for unit in self._units:
            if unit.pipeline and (reason := unit.pipeline.failure_reason()):
                return f"{unit.name}: {reason}" if unit.name else reason
        return None


def _description(unit: ModelUnit) -> str:
    model_id = unit.service.require_model().source.model_id
    return f"{unit.name} ({model_id})" if unit.name else model_id

"""From exec to exit: bind, load, self-test, serve; on SIGTERM or SIGINT drain and leave.

::

    bind (health NOT_SERVING) -> load, self-test -> SERVING -> signal, or trouble -> NOT_SERVING, drain -> exit

One of several workers binds after the self-test, so that the kernel deals no connection to one that is not ready.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

from grpc import aio
from grpc_reflection.v1alpha import reflection

from polyhead_server import watchdog
from polyhead_server.addresses import exclusive
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model, describe, load_model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics, listen_for_scrapes
from polyhead_server.observability.tracing import Tracing
from polyhead_server.rpc import service_names
from polyhead_server.rpc.admin_service import listen
from polyhead_server.rpc.handlers import inference_handler
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.security.tls import Certificates
from polyhead_server.settings import Settings
from polyhead_server.workers.ipc import Values

from .compatibility import Identity, problem
from .operations import Control
from .reload import Reloader, state_of

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
# Seconds for the last answers to leave after the last of our calls has ended.
_FLUSH_S = 1.0
# Calls may run on for so long before clients are sent elsewhere; none has tried in vain too often by then.
_REDIRECT_S = 0.3


class Team(Protocol):
    """What one of several workers, which share a port, has to do with the others.

    Attributes:
        identity: Of the model that serves, which ours must be able to follow; None where none serves yet.
        drained: Whether an operator has drained the server.
    """

    identity: Identity | None
    drained: bool

    def announce(self, identity: Identity, control: Control) -> None:
        """Says that this worker serves, and what tells it from then on what to do."""

    async def ask(self, what: str, arguments: Values) -> list[Values]:
        """Asks all workers to do something."""


async def serve(settings: Settings, stop: asyncio.Event | None = None, team: Team | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.

    Args:
        settings: What the server was told.
        stop: Ends the server as a signal does.
        team: The other workers, which share the port. Signals of theirs are the supervisor's business.

    Returns:
        The exit code: 0 when everything that was accepted was answered, 1 when something was cut off, or the engine
        fails for good.

    Raises:
        StartupError: The address is taken, a certificate or a key file is no good, or the model cannot be served.
    """
    async with contextlib.AsyncExitStack() as stack:
        # Before anything else is touched, so that nobody's socket is.
        address = settings.listen if team else stack.enter_context(exclusive(settings.listen))
        return await _Process(settings, stop or asyncio.Event(), team).run(address, stack)


class _Process:
    """A server process, with or without others beside it."""

    def __init__(self, settings: Settings, stop: asyncio.Event, team: Team | None) -> None:
        self._settings = settings
        self._stop = stop
        self._cut = asyncio.Event()
        self._team = team
        self._metrics = Metrics()
        self._health = Health()
        self._service = InferenceService(settings, self._metrics)
        self._certificates = Certificates.from_settings(settings)
        if self._certificates:
            self._certificates.observe(self._metrics.certificate_expiry())
        self._tracing = Tracing.from_settings(settings)
        # Refused calls are counted, too.
        observation = TelemetryInterceptor(settings, self._metrics, self._tracing)
        interceptors = [observation, *AuthInterceptor.from_settings(settings), ErrorInterceptor(service_names.INFERENCE)]
        self._server = aio.server(interceptors=interceptors, options=_options(settings, shares_port=bool(team)))
        self._control = Control(settings, self._service, self._health, team.ask if team else None)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, address: str, stack: contextlib.AsyncExitStack) -> int:
        if self._tracing:
            stack.push_async_callback(self._tracing.close)
        stack.push_async_callback(self._server.stop, None)
        stack.push_async_callback(self._control.close)
        self._heed_signals()
        self._in_background(self._metrics.sample(lambda: self._service.pipeline))
        await self._health.set(serving=False, alive=False)
        self._server.add_generic_rpc_handlers((inference_handler(self._service),))
        self._health.add_to(self._server)
        if not self._settings.no_reflection:
            names = (service_names.INFERENCE, service_names.HEALTH, service_names.REFLECTION)
            reflection.enable_server_reflection(names, self._server)
        if not self._team:
            address = await listen(self._server, address, self._certificates)
            await self._control.do("open_admin", {})
        if not await self._begin():
            return 0
        drained = self._control.drained or bool(self._team and self._team.drained)
        await self._health.set(serving=not drained, alive=True)
        if self._team:
            address = await listen(self._server, address, self._certificates)
            self._team.announce(Identity.of(self._pipeline.model), self._control)
        logger.info("serving %s on %s", self._pipeline.model.source.model_id, address)
        if await self._fails():
            await self._drain(joining=False)
            return 1
        return await self._drain()

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _end(self) -> None:
        # A service manager may send one to every process beside the one that the supervisor sends.
        if self._stop.is_set() and not self._team:
            logger.warning("a second signal: what is running is cut off")
            self._cut.set()
        self._stop.set()

    def _reload(self) -> None:
        if not self._team:
            self._in_background(self._control.reload_as_told())

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _pipeline(self) -> Pipeline:
        return cast(Pipeline, self._service.pipeline)

    async def _fails(self) -> bool:
        """Serves until the engine fails for good; returns False where the server was told to stop before that."""
        stopped = asyncio.create_task(self._stop.wait())
        failed = asyncio.create_task(watchdog.trouble(lambda: self._service.pipeline))
        await asyncio.wait({cast(Any, stopped), failed}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            failed.cancel()
            return False
        logger.error("the engine fails for good: %s; the process ends, to be started again", failed.result())
        return True

    async def _begin(self) -> bool:
        """Loads the model and answers with it; returns False when the server was told to stop before it was ready."""
        if self._settings.metrics_listen:
            listen_for_scrapes(self._settings.metrics_listen, self._metrics.registry)
        manifest = self._settings.bundle / "bundle.json"
        # Before it is loaded: what is put in its place meanwhile is another.
        seen = state_of(manifest)
        loading_ = asyncio.create_task(self._load())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait([cast(Any, loading_), stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not loading_.done():
            loading_.cancel()
            return False
        model = loading_.result()
        if self._team and self._team.identity and (reason := problem(self._team.identity, Identity.of(model))):
            raise StartupError(
                f"{self._settings.bundle} must not take over: {reason}. "
                "Put the bundle that serves back, or accept this one with polyhead admin reload --force"
            )
        self._service.serve(self._started(model))
        self._control.reloader = Reloader(self._load, self._started, self._service, self._metrics.count_reload)
        if self._settings.reload_interval_s:
            self._in_background(self._control.reloader.watch(manifest, seen, self._settings.reload_interval_s))
        return True

    async def _load(self) -> Model:
        return await _in_daemon(lambda: load_model(self._settings))

    def _started(self, model: Model) -> Pipeline:
        """A running pipeline of a model."""
        threads = self._settings.compute_threads(model.engine.runtime.device)
        logger.info(describe(model, threads))
        self._metrics.set_runtime(model, threads)
        follow = self._tracing.on_message if self._tracing else None
        pipeline = Pipeline(model, self._settings, self._metrics.observe_batch, follow)
        pipeline.start()
        return pipeline

    async def _drain(self, *, joining: bool = True) -> int:
        """Answers what was accepted, for as long as is allowed; returns the exit code.

        Args:
            joining: Whether to wait for the threads that compute; where one hangs, it would be in vain.
        """
        ends = time.monotonic() + self._settings.drain_timeout_s
        logger.info("draining for at most %g s", self._settings.drain_timeout_s)
        await self._health.set(serving=False, alive=False)
        cut = asyncio.create_task(self._cut.wait())
        # Balancers look now and then, and send calls until they have seen it.
        await asyncio.wait({cut}, timeout=min(self._settings.drain_delay_s, self._settings.drain_timeout_s))
        self._service.drain()
        idle = asyncio.create_task(self._service.wait_idle(max(0.0, ends - time.monotonic())))
        await asyncio.wait({cut, cast(Any, idle)}, timeout=_REDIRECT_S, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done() and not cut.done():
            # Those who call on these connections are sent elsewhere; the calls run on. Not before, as a server that
            # stops answers CANCELLED to calls that it has not looked at yet.
            self._in_background(self._server.stop(self._settings.drain_timeout_s))
        await asyncio.wait({cut, cast(Any, idle)}, return_when=asyncio.FIRST_COMPLETED)
        stats = self._service.stats()
        if not stats["requests_running"]:
            # The grace lets the last answers leave, and is all that others' endless streams get, such as Watch of the
            # health service.
            await self._server.stop(_FLUSH_S)
            if joining:
                await self._pipeline.close()
            logger.info("stopped")
            return 0
        logger.error("cut off: %d calls, %d texts in the queue", stats["requests_running"], stats["queued_items"])
        return 1


def _in_daemon(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Runs ``work`` in a thread that keeps nobody from leaving, unlike those of asyncio's executor."""
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        # From here on nobody can cancel it, whoever may have left when it is done.
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: the waiter raises it
            outcome.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return asyncio.wrap_future(outcome)


def _options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise a second server binds the same port in silence and takes half of the calls. Workers want just that.
        ("grpc.so_reuseport", int(shares_port)),
        # A stream whose client does not read costs 70 kB instead of 4.3 MB.
        ("grpc.http2.bdp_probe", 0),
        # Who has an admin service may look at connections there.
        ("grpc.enable_channelz", int(bool(settings.admin_listen))),
    ]

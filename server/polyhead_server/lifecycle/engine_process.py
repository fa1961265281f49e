"""Life of the engine process of ``--fronts``: load, self-test, serve the fronts; drain and exit on SIGTERM.

::

    load, self-test -> fronts connect -> signal or engine failure -> what was admitted is computed -> exit
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import cast

from polyhead_server.candidate.bundle import load_candidate
from polyhead_server.candidate.parameters import CandidateBundle
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.errors import NotReadyError
from polyhead_server.fronts.engine_host import EngineHost
from polyhead_server.fronts.served_model import ServedModel
from polyhead_server.inference.engine_core import EngineCore
from polyhead_server.inference.model import Model, describe, load_model
from polyhead_server.observability.metrics import Metrics
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.process_reports import DriftCounts, ReloadResult, WorkerStats
from polyhead_server.rpc import worker_stats
from polyhead_server.settings import Settings

from . import stop_signals
from .compatibility import identity_of, require_compatible
from .model_loader import ModelLoader, result_of
from .operations import internal_errors, reload_result
from .reload import Reloader
from .reload_queue import ReloadQueue
from .server import WorkerRole
from .stop_signals import EXIT_FAILED
from .watchdog import wait_for_failure

logger = logging.getLogger(__name__)


async def serve_engine(settings: Settings, stop: asyncio.Event, role: WorkerRole) -> int:
    """Serves the fronts until SIGTERM, or until ``stop`` is set.

    Args:
        settings: Settings of the server.
        stop: Stops the process as a signal does.
        role: See ``WorkerRole``; its ``engine_socket`` is where to listen.

    Returns:
        The exit code: 0 if everything that was admitted was computed.

    Raises:
        StartupError: The model cannot be served.
        ServerFailedError: It could not be loaded this time.
    """
    return await _EngineProcess(settings, stop, role).run()


class _EngineProcess:
    """The engine process."""

    def __init__(self, settings: Settings, stop: asyncio.Event, role: WorkerRole) -> None:
        self._settings = settings
        self._stop = stop
        self._role = role
        self._metrics = Metrics()
        self._drift = DriftMonitor(settings)
        self._host = EngineHost(cast(Path, role.engine_socket))
        self._loader = ModelLoader(lambda loading: load_model(settings, loading), settings.start_timeout_s)

    async def run(self) -> int:
        with contextlib.ExitStack() as stack:
            timeout_s = self._settings.drain_timeout_s
            stack.enter_context(stop_signals.handled(self._stop.set, timeout_s, ignore_second=True))
            stack.callback(self._host.close)
            if not (model := await self._load()):
                return 0
            self._host.serve(self._start(model))
            self._host.listen()
            sampling = asyncio.create_task(self._metrics.sample(lambda: self._current.core))
            stack.callback(sampling.cancel)
            self._role.on_serving(identity_of(model), self._operations())
            logger.info("computing with %s for the fronts", model.source.model_id)
            return await self._compute_until_stopped()

    async def _load(self) -> Model | None:
        """Loads the first model; returns None after a request to stop before it was ready."""
        load = await stop_signals.ended_before(self._stop, self._load_prepared())
        return result_of(load) if load else None

    async def _load_prepared(self) -> Model:
        bundle = self._role.bundle
        model = await (self._load_candidate(CandidateBundle(bundle)) if bundle else self._loader.load())
        require_compatible(self._settings, self._role.serving_identity, model)
        await self._host.prepare(model)
        return model

    async def _load_candidate(self, candidate: CandidateBundle) -> Model:
        return await self._loader.load(partial(load_candidate, self._settings, candidate))

    def _start(self, model: Model) -> ServedModel:
        core = EngineCore(
            model,
            self._settings,
            self._metrics.observe_batches,
            on_exception=exit_if_out_of_memory,
            observe_lookups=self._metrics.count_cache_lookups,
            observe_outcomes=self._drift.watch(model),
        )
        logger.info(describe(model, core.threads))
        self._metrics.set_runtime(model, core.threads)
        core.start()
        return ServedModel(self._host.number_of(model), core)

    def _operations(self) -> EngineOperations:
        reloader = Reloader(
            self._loader.load, self._start, self._host, self._metrics.count_reload, prepare=self._host.prepare
        )
        return EngineOperations(self._host, self._metrics, reloader, self._drift, self._load_candidate)

    @property
    def _current(self) -> ServedModel:
        return cast(ServedModel, self._host.current)

    async def _compute_until_stopped(self) -> int:
        if failed := await stop_signals.ended_before(self._stop, wait_for_failure(lambda: self._current.core)):
            logger.error("the engine failed permanently: %s; exiting so that it is restarted", failed.result())
            return EXIT_FAILED
        return await self._drain()

    async def _drain(self) -> int:
        """Computes for the fronts until they have ended: a service manager may signal all processes at once."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._host.unused.wait(), self._settings.drain_timeout_s)
        if any(front.counts()[0] for front in self._host.connections):
            logger.error("cut off: %d texts in the queue", self._current.core.queue_state().items)
            return EXIT_FAILED
        logger.info("stopped")
        return 0


class EngineOperations:
    """Operations on the engine process; see ``ProcessOperations``."""

    # It answers no calls of its own.
    candidate = None

    def __init__(
        self,
        host: EngineHost,
        metrics: Metrics,
        reloader: Reloader[ServedModel],
        drift: DriftMonitor,
        load_candidate: Callable[[CandidateBundle], Awaitable[Model]],
    ) -> None:
        """Connects the operations to the process.

        Args:
            host: Serves the fronts.
            metrics: Counters since the start of the process.
            reloader: Loads the bundle again.
            drift: Counts the texts of all fronts.
            load_candidate: Loads another bundle.
        """
        self._drift = drift
        self._host = host
        self._metrics = metrics
        self._reloader = reloader
        self._load_candidate = load_candidate
        # A load cannot be stopped once it has begun, so the next one waits for it.
        self._reloads = ReloadQueue(lambda force: self._reloader.reload(force=force))
        self._started = time.monotonic()

    @property
    def model(self) -> Model:
        """The model that computes now."""
        return cast(ServedModel, self._host.current).model

    async def reload(self, *, force: bool) -> ReloadResult:
        """Loads the bundle again, and serves it for all fronts at once.

        Raises:
            ReloadError: The old model stays; states why.
        """
        with internal_errors("reload"):
            return reload_result(await self._reloads.request(force=force))

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> ReloadResult:
        """Loads another bundle, and serves it for all fronts at once.

        Raises:
            ReloadError: The old model stays; states why.
        """
        with internal_errors("promote"):
            model = await self._reloader.reload(force=force, load=partial(self._load_candidate, candidate))
        return reload_result(model)

    async def drain(self) -> None:
        """Does nothing: the fronts report what load balancers see."""

    async def drift(self) -> DriftCounts:
        """Returns what the process has counted of the traffic of all fronts."""
        with internal_errors("drift"):
            return self._drift.counts()

    async def stats(self) -> WorkerStats:
        """Returns the statistics of this process, which has no calls of its own.

        Raises:
            NotReadyError: No model serves yet.
        """
        if self._host.current is None:
            raise NotReadyError
        return worker_stats.collect(
            self._host.current.core,
            self._metrics,
            name="",
            serving=True,
            up_time_s=time.monotonic() - self._started,
            requests_running=0,
        )

"""Runs several server processes on one port. The supervisor itself runs no model and serves no inference calls.

::

    polyhead-serve --workers N -> supervisor -> N x python -m polyhead_server.workers.main, each on its own cores
                                   |  JSON-RPC over standard input and output, see ``ipc``; the end of the input
                                   |  tells a worker that its supervisor has ended

    polyhead-serve --fronts N -> supervisor -> 1 x ... engine, which has the model and the queue
                                            -> N x ... front, which have the connections; see ``fronts``

The kernel distributes connections among the workers or fronts, and each of them listens only once a model has passed
the golden self-test. A process that dies is restarted, each time after a longer delay; an old worker or front is
replaced by a successor. The server ends when none of a kind serves and one cannot start, or has died too many times in
a row.

The supervisor imports gRPC only if it serves the admin service. Once gRPC has started, no code may run in a forked copy
of the process, whose locks other threads may hold. So the supervisor runs on asyncio's own event loop, which starts
processes by vfork and exec. uvloop runs Python in the forked child before it calls exec; with gRPC, children crashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from polyhead_server.addresses import require_local, reserve
from polyhead_server.background import BackgroundTasks
from polyhead_server.errors import StartupError
from polyhead_server.lifecycle.bundle_watcher import BundleWatcher
from polyhead_server.lifecycle.entry import EXIT_CANNOT_START, ServerFailedError
from polyhead_server.lifecycle.stop_signals import EXIT_FAILED
from polyhead_server.observability.candidate_metrics import CandidateCollector, CandidateMetrics
from polyhead_server.observability.drift_metrics import DriftMetrics, refresh
from polyhead_server.observability.metric_factories import Instruments
from polyhead_server.observability.multiprocess import WorkerMetrics
from polyhead_server.observability.scrape_server import listen_for_scrapes
from polyhead_server.settings import Settings, usable_cores
from polyhead_server.threads import in_daemon_thread

from .commands import WorkerCommands
from .config import front_configs, worker_configs
from .ipc import Role, WorkerConfig
from .process import WorkerProcess, process_name

logger = logging.getLogger(__name__)

# A worker that dies is restarted after a delay, which doubles each time it dies young.
RESTART_DELAY_S = 0.1
MAX_RESTART_DELAY_S = 10.0
# A process that served this long counts as healthy. All calls wait for the next engine process, so it is restarted
# without a delay unless it dies at once.
_YOUNG_S = {Role.WORKER: 60.0, Role.FRONT: 60.0, Role.ENGINE: 1.0}
# Young deaths in a row after which the server gives up, unless another worker serves.
MAX_DEATHS = 6
# Seconds after --drain-timeout-s at which a worker that has not ended is killed.
KILL_GRACE_S = 5.0
# A worker is replaced at an age drawn from this part of --max-worker-age-s, so that workers that started together are
# not replaced together.
_AGE_RANGE = (0.8, 1.0)


class WorkerDiedError(ServerFailedError):
    """A worker died too many times in a row."""


async def supervise(settings: Settings) -> int:
    """Runs the workers until SIGTERM or SIGINT; a second signal kills them.

    Returns:
        The exit code: 0 if everything that was accepted was answered; 1 if work was cut off.

    Raises:
        StartupError: The address is taken, there are more workers than cores, or a worker cannot serve this bundle.
        WorkerDiedError: A worker died too many times in a row.
    """
    require_local(settings.admin_listen)
    async with contextlib.AsyncExitStack() as stack:
        address = stack.enter_context(reserve(settings.listen))
        folder, metrics, registry = stack.enter_context(_metrics(settings.metrics_listen))
        # No other user may enter it.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="polyhead-engine-")) if settings.fronts else ""
        supervisor = Supervisor(dataclasses.replace(settings, listen=address), folder, metrics, sockets)
        # Before gRPC is imported, which takes a while: without a handler a signal would end the process at once.
        supervisor.handle_signals()
        candidates = CandidateCollector()
        if registry:
            registry.register(candidates)
        candidate_metrics = candidates.add()
        if settings.admin_listen:
            await _serve_admin(settings, supervisor.commands, candidate_metrics, stack)
        if registry and settings.drift_window_s:
            task = asyncio.create_task(refresh(DriftMetrics(Instruments(registry)), supervisor.commands.drift))
            stack.callback(task.cancel)
        return await supervisor.run()


class Supervisor:
    """Starts, restarts, replaces and stops the workers.

    Attributes:
        commands: Commands to all workers.
    """

    def __init__(
        self, settings: Settings, metrics_folder: str, metrics: WorkerMetrics | None, socket_folder: str = ""
    ) -> None:
        """Prepares the supervisor; ``run`` starts the workers.

        Args:
            settings: Settings of the server.
            metrics_folder: Directory of the files in which all workers count; empty without --metrics-listen.
            metrics: Reads these files; None without --metrics-listen.
            socket_folder: Directory of the socket of the engine process; empty without --fronts.
        """
        self._settings = settings
        self._socket_folder = socket_folder
        self._noun = "processes" if settings.fronts else "workers"
        self._metrics_folder = metrics_folder
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._stopped = asyncio.create_task(self._stopping.wait())
        self._workers: set[WorkerProcess] = set()
        # The worker that serves in each slot, by number.
        self._serving: dict[int, WorkerProcess] = {}
        self.commands = WorkerCommands(settings, self._workers, self._serving)
        self._cut_off = False
        self._background = BackgroundTasks()

    def handle_signals(self) -> None:
        """Makes signals stop the server or reload the bundle; one that comes before ``run`` takes effect there."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._background.start(self.commands.reload_and_log()))

    async def run(self) -> int:
        """Runs the workers until a signal; returns the exit code."""
        configs = self._configs()
        watch = asyncio.create_task(self._watch_bundle())
        tasks = [asyncio.create_task(self._keep_running(number, config)) for number, config in enumerate(configs)]
        try:
            await asyncio.gather(*tasks)
        finally:
            self._stop()
            watch.cancel()
            while pending := [task for task in (*tasks, *self._background) if not task.done()]:
                await asyncio.wait(pending)
        logger.info("stopped")
        return EXIT_FAILED if self._cut_off else 0

    def _configs(self) -> list[WorkerConfig]:
        if self._settings.fronts:
            return front_configs(self._settings, str(Path(self._socket_folder, "engine.sock")))
        return worker_configs(self._settings, sorted(os.sched_getaffinity(0)), usable_cores())

    async def _watch_bundle(self) -> None:
        # Only the supervisor watches: if each worker did, the commands would not know the new model's identity, and
        # workers that start later could not be checked against it.
        if self._settings.reload_interval_s:
            watcher = await in_daemon_thread(lambda: BundleWatcher(self._settings.bundle), "bundle-watcher")
            await watcher.watch(self.commands.reload_and_log, self._settings.reload_interval_s)

    def _on_stop_signal(self) -> None:
        if self._stopping.is_set():
            logger.warning("second signal: killing %d %s", len(self._workers), self._noun)
            for worker in self._workers:
                worker.kill()
            return
        logger.info("stopping %d %s", len(self._workers), self._noun)
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self.commands.stopping = True
        self._background.start(self.commands.update_health())
        self._terminate()

    def _terminate(self) -> None:
        """Stops the processes; the engine process only after the last front, which may still wait for it."""
        fronts = [worker for worker in self._workers if worker.config.role is Role.FRONT]
        for worker in fronts or self._workers:
            worker.terminate()

    async def _keep_running(self, number: int, config: WorkerConfig) -> None:
        """Restarts the worker of one slot whenever it dies, until the server stops."""
        deaths = 0
        while not self._stopping.is_set():
            code, served_s = await self._run_slot(number, config)
            if self._stopping.is_set():
                return
            deaths = deaths + 1 if served_s < _YOUNG_S[config.role] else 1
            # Workers that serve keep serving: for example, the bundle may have been damaged after they had loaded it.
            others_serve = any(worker.config.role is config.role for worker in self._serving.values())
            name = process_name(config, number)
            if code == EXIT_CANNOT_START and not others_serve:
                subject = name if config.role is Role.ENGINE else f"a {config.role}"
                raise StartupError(f"{subject} cannot start; its reason is in the log above")
            if deaths >= MAX_DEATHS and not others_serve:
                raise WorkerDiedError(f"{name} died {deaths} times in a row, the last time with code {code}")
            delay_s = min(MAX_RESTART_DELAY_S, RESTART_DELAY_S * 2 ** min(deaths - 1, 10))
            logger.warning("%s died with code %d; restarting it in %g s", name, code, delay_s)
            await asyncio.wait({self._stopped}, timeout=delay_s)

    async def _run_slot(self, number: int, config: WorkerConfig) -> tuple[int, float]:
        """Runs a worker, and its successors when it gets old, to the end.

        Returns:
            The exit code of the last one, and the seconds for which it served.
        """
        worker = await self._start(number, config)
        if worker is None:
            return EXIT_FAILED, 0.0
        if await self._wait_until_serving(worker):
            while not await self._wait_until_old(worker):
                worker = await self._rotate(worker, config)
        return await self._wait_until_ended(worker), worker.serving_s

    async def _start(self, number: int, config: WorkerConfig) -> WorkerProcess | None:
        config = dataclasses.replace(
            config,
            identity=self.commands.identity,
            drained=self.commands.drained,
            metrics_folder=self._metrics_folder,
            bundle=self.commands.bundle,
        )
        try:
            worker = await WorkerProcess.start(number, config)
        except OSError:
            logger.exception("%s cannot be started", process_name(config, number))
            return None
        self._workers.add(worker)
        if self._stopping.is_set():
            self._terminate()
        return worker

    async def _wait_until_serving(self, worker: WorkerProcess) -> bool:
        """Waits until a worker serves; kills one that takes too long."""
        timeout_s = self._settings.start_timeout_s
        if not await worker.wait_until_serving(timeout_s, self._stopped):
            if not worker.ended and not self._stopping.is_set():
                logger.error("%s does not serve after %g s (--start-timeout-s); killing it", worker.name, timeout_s)
                worker.kill()
            return False
        # While the first workers load the bundle, another bundle may be put in its place.
        if worker.config.role is not Role.FRONT:
            self.commands.identity = self.commands.identity or worker.identity
            if worker.config.identity is None and worker.identity != self.commands.identity:
                logger.error("%s has loaded another model than the others; restarting it", worker.name)
                worker.terminate()
                return False
        self._serving[worker.number] = worker
        self._log_serving(worker)
        await self.commands.add(worker)
        await self.commands.update_health()
        return True

    def _log_serving(self, worker: WorkerProcess) -> None:
        config = worker.config
        if config.role is not Role.WORKER:
            logger.info("%s serves as process %d", worker.name, worker.pid)
            if len(self._serving) == self._settings.fronts + 1:
                logger.info("the engine and %d fronts serve on %s", self._settings.fronts, self._settings.listen)
            return
        share = f"cores {list(config.cores)}" if config.cores else f"a quota of {config.settings.cores} cores"
        logger.info("%s serves on %s as process %d", worker.name, share, worker.pid)
        if len(self._serving) == self._settings.workers:
            logger.info("all %d workers serve on %s", self._settings.workers, self._settings.listen)

    async def _wait_until_old(self, worker: WorkerProcess) -> bool:
        """Waits until a worker is old; returns True if it ended before or the server stops, False once it is old."""
        age_s = self._settings.max_worker_age_s * random.uniform(*_AGE_RANGE) or None  # noqa: S311 - not a secret
        if worker.config.role is Role.ENGINE:
            # Two would answer at once.
            age_s = None
        waited = {cast(asyncio.Task[Any], worker.exit_code), self._stopped}
        done, _ = await asyncio.wait(waited, timeout=age_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    async def _rotate(self, old: WorkerProcess, config: WorkerConfig) -> WorkerProcess:
        """Starts a successor and stops the old worker once the successor serves; returns the worker that stays."""
        async with self.commands.changing:
            if old.ended or self._stopping.is_set():
                return old
            age = timedelta(seconds=round(old.serving_s))
            logger.info("%s has served for %s; starting its successor", old.name, age)
            new = await self._start(old.number, config)
            if new is None:
                return old
            if not await self._wait_until_serving(new):
                logger.error("%s stays, because its successor failed", old.name)
                self._background.start(self._wait_until_ended(new))
                return old
            old.terminate()
            self._background.start(self._wait_until_ended(old))
        return new

    async def _wait_until_ended(self, worker: WorkerProcess) -> int:
        """Waits for the end of a worker and returns its exit code; kills one that does not stop when requested."""
        try:
            timeout_s = self._settings.drain_timeout_s + KILL_GRACE_S
            code = await asyncio.wait_for(asyncio.shield(worker.exit_code), timeout_s)
        except TimeoutError:
            logger.error("process %d does not end; killing it", worker.pid)  # noqa: TRY400 - the traceback adds nothing
            worker.kill()
            code = await worker.exit_code
        self._workers.discard(worker)
        if self._stopping.is_set():
            self._terminate()
        if self._serving.get(worker.number) is worker:
            del self._serving[worker.number]
        if worker.stop_requested and worker.serving_since and code:
            self._cut_off = self._cut_off or self._stopping.is_set()
            logger.error("%s, process %d, ended with code %d: work was cut off", worker.name, worker.pid, code)
        if self._metrics:
            self._metrics.merge_dead_worker(worker.pid)
        await self.commands.update_health()
        return code


async def _serve_admin(
    settings: Settings, commands: WorkerCommands, metrics: CandidateMetrics, stack: contextlib.AsyncExitStack
) -> None:
    """Serves the admin service in this process until the stack is closed.

    Raises:
        StartupError: The address is taken.
    """
    from polyhead_server.lifecycle.candidate_manager import CandidateManager
    from polyhead_server.rpc.admin_service import AdminServer
    from polyhead_server.rpc.health import Health

    commands.health = Health()
    await commands.update_health()
    manager = CandidateManager(settings, commands.candidate, metrics)
    stack.push_async_callback(manager.close)

    async def candidates(model: str) -> CandidateManager:
        if model:
            await commands.stats(model)
        return manager

    admin = AdminServer(settings, commands, candidates, commands.health)
    await admin.open()
    stack.push_async_callback(admin.close)


@contextlib.contextmanager
def _metrics(listen: str) -> Iterator[tuple[str, WorkerMetrics | None, CollectorRegistry | None]]:
    """Answers scrapes for all workers from files in which they count.

    Yields:
        The directory of the files, their reader, and the registry that is scraped.

    Raises:
        StartupError: The address is taken.
    """
    if not listen:
        yield "", None, None
        return
    with tempfile.TemporaryDirectory(prefix="polyhead-metrics-") as folder:
        registry = CollectorRegistry()
        metrics = WorkerMetrics(Path(folder))
        registry.register(metrics)
        listen_for_scrapes(listen, registry)
        yield folder, metrics, registry

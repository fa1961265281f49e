"""Several server processes on one port: their supervisor, which never imports gRPC and computes nothing itself.

::

    polyhead-serve --workers N -> supervisor -> N x `python -m polyhead_server.workers.main`, each on its part of the cores
                                     |  standard input and output: see ``protocol``; the input's end tells that the
                                     |  supervisor is gone

The kernel deals connections out to the workers, and a worker listens only once its model has answered its golden texts
right. One that dies is started again, later each time; one that is old hands over to a successor. The server ends by
itself when none serves and one cannot start, or has died again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import random
import signal
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from polyhead_server.addresses import require_local, reserve
from polyhead_server.errors import StartupError
from polyhead_server.observability.metrics import listen_for_scrapes
from polyhead_server.observability.multiprocess import WorkerMetrics
from polyhead_server.settings import Settings, usable_cores

from .commands import WorkerCommands
from .ipc import Start
from .process import WorkerProcess

logger = logging.getLogger(__name__)

# A worker that dies waits before it starts again, twice as long each time it dies young.
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
# One that served for so long was healthy.
_YOUNG_S = 60.0
# Deaths in a row, each young, after which the server gives up if no other worker serves.
_MOST_DEATHS = 6
# Seconds beyond its own grace that a worker has to end before it is killed.
_KILL_S = 5.0
# Exit code of a process that was told something it cannot do; starting it again would not help.
_CANNOT_START = 2
# A worker's age at which it is replaced, in parts of the greatest: workers that started together part ways.
_AGES = (0.8, 1.0)


class WorkerDiedError(Exception):
    """A worker died again and again."""


async def supervise(settings: Settings) -> int:
    """Runs the workers until SIGTERM or SIGINT; a second signal ends them at once.

    Returns:
        The exit code: 0 when everything that was accepted was answered, 1 when something was cut off.

    Raises:
        StartupError: The address is taken, there are more workers than cores, or a worker cannot serve this bundle.
        WorkerDiedError: A worker died again and again.
    """
    require_local(settings.admin_listen)
    with contextlib.ExitStack() as stack:
        shared: dict[str, Any] = {"listen": stack.enter_context(reserve(settings.listen)), "metrics_listen": ""}
        if settings.admin_listen and not settings.admin_listen.startswith("unix:"):
            shared["admin_listen"] = stack.enter_context(reserve(settings.admin_listen))
        folder, metrics = stack.enter_context(_metrics(settings.metrics_listen))
        return await _Supervisor(dataclasses.replace(settings, **shared), folder, metrics).run()


def parts(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Deals cores out: neighbours together, and no worker has more than one more than another."""
    least, more = divmod(len(cores), workers)
    ends = [0]
    for number in range(workers):
        ends.append(ends[-1] + least + (number < more))
    return [list(cores[begin:end]) for begin, end in itertools.pairwise(ends)]


def starts(settings: Settings, cores: Sequence[int], usable: int) -> list[Start]:
    """What each worker is told.

    Args:
        settings: The server's.
        cores: Those that this process may run on.
        usable: How many of them a cgroup's quota is worth. Where it is fewer, nobody is pinned: the quota is of time on
            any of the cores, and others, who count them alike, would crowd on the same few.

    Raises:
        StartupError: There are fewer cores than workers.
    """
    if settings.workers > usable:
        raise StartupError(f"--workers {settings.workers} is more than the {usable} cores that this process may use")
    if usable == len(cores):
        return [Start(settings, part) for part in parts(cores, settings.workers)]
    share = dataclasses.replace(settings, cores=usable // settings.workers)
    return [Start(share, []) for _ in range(settings.workers)]


class _Supervisor:
    def __init__(self, settings: Settings, metrics_folder: str, metrics: WorkerMetrics | None) -> None:
        self._settings = settings
        self._metrics_folder = metrics_folder
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._stopped = asyncio.create_task(self._stopping.wait())
        self._workers: set[WorkerProcess] = set()
        # Of each number the one that serves now.
        self._serving: dict[int, WorkerProcess] = {}
        self._orders = WorkerCommands(settings, self._workers, self._serving)
        self._cut_off = False
        self._background: set[asyncio.Task[Any]] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._in_background(self._orders.reload_as_told()))
        # Only one looks whether the bundle was replaced.
        theirs = dataclasses.replace(self._settings, reload_interval_s=0.0)
        told = starts(theirs, sorted(os.sched_getaffinity(0)), usable_cores())
        watching = asyncio.create_task(self._watch())
        tasks = [asyncio.create_task(self._keep(number, start)) for number, start in enumerate(told)]
        try:
            await asyncio.gather(*tasks)
        finally:
            self._stopping.set()
            self._terminate_all()
            watching.cancel()
            while pending := [task for task in (*tasks, *self._background) if not task.done()]:
                await asyncio.wait(pending)
        logger.info("stopped")
        return int(self._cut_off)

    async def _watch(self) -> None:
        if self._settings.reload_interval_s:
            await self._orders.watch(self._settings.bundle / "bundle.json", self._settings.reload_interval_s)

    def _stop(self) -> None:
        if self._stopping.is_set():
            logger.warning("a second signal: %d workers are killed", len(self._workers))
            for worker in self._workers:
                worker.kill()
            return
        logger.info("stopping %d workers", len(self._workers))
        self._stopping.set()
        self._terminate_all()

    def _terminate_all(self) -> None:
        for worker in self._workers:
            worker.terminate()

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _keep(self, number: int, told: Start) -> None:
        """Keeps one worker running."""
        deaths = 0
        while not self._stopping.is_set():
            code, served_s = await self._run_one(number, told)
            if self._stopping.is_set():
                return
            deaths = deaths + 1 if served_s < _YOUNG_S else 1
            # Nobody ends those that serve: a bundle that was damaged meanwhile, say, is no reason to.
            if code == _CANNOT_START and not self._serving:
                raise StartupError("a worker cannot start; it says why above")
            if deaths >= _MOST_DEATHS and not self._serving:
                raise WorkerDiedError(f"worker {number} died {deaths} times in a row, the last time with code {code}")
            delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(deaths - 1, 10))
            logger.warning("worker %d died with code %d; it starts again in %g s", number, code, delay_s)
            await asyncio.wait({self._stopped}, timeout=delay_s)

    async def _run_one(self, number: int, told: Start) -> tuple[int, float]:
        """Runs a worker, and its successors when it gets old, to the end; returns an exit code and how long it served.

        In between, the worker has this place: serving, or about to.
        """
        worker = await self._start(number, told)
        if worker is None:
            return 1, 0.0
        if await self._up(worker, told):
            while not await self._gets_old(worker):
                worker = await self._succeed(worker, told)
        return await self._end(worker), worker.served_s

    async def _start(self, number: int, told: Start) -> WorkerProcess | None:
        told = dataclasses.replace(
            told,
            identity=self._orders.identity,
            drained=self._orders.drained,
            metrics_folder=self._metrics_folder,
        )
        try:
            worker = await WorkerProcess.start(number, told, self._orders.hear)
        except OSError:
            logger.exception("worker %d cannot be started", number)
            return None
        self._workers.add(worker)
        if self._stopping.is_set():
            worker.terminate()
        return worker

    async def _up(self, worker: WorkerProcess, told: Start) -> bool:
        """Waits until a worker serves; kills one that takes too long."""
        timeout_s = self._settings.start_timeout_s
        if not await worker.up(timeout_s, self._stopped):
            if not worker.ended.done() and not self._stopping.is_set():
                logger.error(
                    "worker %d does not serve after %g s, --start-timeout-s; it is killed", worker.number, timeout_s
                )
                worker.kill()
            return False
        # While the first workers load the bundle, another may be put in its place.
        self._orders.identity = self._orders.identity or worker.identity
        if worker.told.identity is None and worker.identity != self._orders.identity:
            logger.error("worker %d has loaded another model than the others; it starts again", worker.number)
            worker.terminate()
            return False
        self._serving[worker.number] = worker
        where = f"cores {told.cores}" if told.cores else f"{told.settings.cores} cores' worth of a quota"
        logger.info("worker %d serves on %s as process %d", worker.number, where, worker.pid)
        if len(self._serving) == self._settings.workers:
            logger.info("all %d workers serve on %s", self._settings.workers, self._settings.listen)
        await self._orders.welcome(worker)
        return True

    async def _gets_old(self, worker: WorkerProcess) -> bool:
        """Waits until a worker is old; returns False for that, True when it ended before, or all are told to."""
        age_s = self._settings.max_worker_age_s * random.uniform(*_AGES) or None  # noqa: S311 - no secret
        waited = {cast(asyncio.Task[Any], worker.ended), self._stopped}
        done, _ = await asyncio.wait(waited, timeout=age_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    async def _succeed(self, old: WorkerProcess, told: Start) -> WorkerProcess:
        """Starts a successor, and ends the old worker once it serves; returns the one that serves then."""
        async with self._orders.changing:
            if old.ended.done() or self._stopping.is_set():
                return old
            logger.info("worker %d has served for %.0f s; its successor starts", old.number, old.served_s)
            new = await self._start(old.number, told)
            if new is None:
                return old
            if not await self._up(new, told):
                logger.error("worker %d stays, because its successor failed", old.number)
                self._in_background(self._end(new))
                return old
            old.terminate()
            self._in_background(self._end(old))
        return new

    async def _end(self, worker: WorkerProcess) -> int:
        """Sees a worker to its end, and kills one that was told to end and does not; returns its exit code."""
        try:
            code = await asyncio.wait_for(asyncio.shield(worker.ended), self._settings.drain_timeout_s + _KILL_S)
        except TimeoutError:
            logger.error("process %d does not end; it is killed", worker.pid)  # noqa: TRY400 - that is all of it
            worker.kill()
            code = await worker.ended
        self._workers.discard(worker)
        if self._serving.get(worker.number) is worker:
            del self._serving[worker.number]
        if worker.told_to_end and worker.served_since and code:
            self._cut_off = self._cut_off or self._stopping.is_set()
            logger.error("worker %d, process %d, ended with code %d: work was cut off", worker.number, worker.pid, code)
        if self._metrics:
            self._metrics.merge_dead_worker(worker.pid)
        await self._orders.hand_admin()
        return code


@contextlib.contextmanager
def _metrics(listen: str) -> Iterator[tuple[str, WorkerMetrics | None]]:
    """Answers scrapes for all workers, out of files that they write to a folder; yields the folder and what reads it.

    Raises:
        StartupError: The address is taken.
    """
    if not listen:
        yield "", None
        return
    with tempfile.TemporaryDirectory(prefix="polyhead-metrics-") as folder:
        registry = CollectorRegistry()
        metrics = WorkerMetrics(Path(folder))
        registry.register(metrics)
        listen_for_scrapes(listen, registry)
        yield folder, metrics

"""Several server processes on one port: their supervisor, which never imports gRPC and computes nothing itself.

::

    polyhead-serve --workers N -> supervisor -> N x `python -m polyhead_server.worker`, each on its part of the cores
                                     |  standard input: settings; its end tells that the supervisor is gone
                                     |  standard output: one line once it serves

The kernel deals connections out to the workers, and a worker listens only once its model has answered its golden texts
right. One that dies is started again, later each time. The server ends by itself when none serves and one cannot start,
or has died again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry, multiprocess

from .errors import StartupError
from .metrics import listen_for_scrapes
from .settings import Settings, split_address, usable_cores

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


class WorkerDiedError(Exception):
    """A worker died again and again."""


async def supervise(settings: Settings) -> None:
    """Runs the workers until SIGTERM or SIGINT; a second signal ends them at once.

    Raises:
        StartupError: The address is taken, there are more workers than cores, or a worker cannot serve this bundle.
        WorkerDiedError: A worker died again and again.
    """
    with reserve(settings.listen) as address, _metrics(settings.metrics_listen) as metrics_folder:
        workers_settings = dataclasses.replace(settings, listen=address, metrics_listen="")
        await _Supervisor(workers_settings, metrics_folder).run()


@contextlib.contextmanager
def reserve(address: str) -> Iterator[str]:
    """Keeps HOST:PORT for sockets that share ports, for as long as the context lasts; yields it, with port 0 resolved.

    Raises:
        StartupError: Somebody listens there, or the address is not ours.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # It never listens, so it is never given a connection.
    with socket.socket(family) as shared:
        try:
            # A socket that does not share its port is refused where anybody is, also one that would share it.
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
                port = alone.getsockname()[1]
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind((host, port))
        except OSError as error:
            raise StartupError(f"cannot listen on {address}; is another server running there? {error}") from error
        yield f"{address.rpartition(':')[0]}:{port}"


def parts(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Deals cores out: neighbours together, and no worker has more than one more than another.

    Raises:
        StartupError: There are fewer cores than workers.
    """
    if workers > len(cores):
        raise StartupError(f"--workers {workers} is more than the {len(cores)} cores that this process may use")
    least, more = divmod(len(cores), workers)
    ends = [0]
    for number in range(workers):
        ends.append(ends[-1] + least + (number < more))
    return [list(cores[begin:end]) for begin, end in itertools.pairwise(ends)]


class _Supervisor:
    def __init__(self, settings: Settings, metrics_folder: str | None) -> None:
        self._settings = settings
        self._metrics_folder = metrics_folder
        self._environment = dict(os.environ)
        if metrics_folder:
            self._environment["PROMETHEUS_MULTIPROC_DIR"] = metrics_folder
        self._stopping = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()
        # The workers that serve now, and since when.
        self._serving: dict[int, float] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        # A cgroup's quota may be less than the cores that there are.
        cores = sorted(os.sched_getaffinity(0))[: usable_cores()]
        tasks = [
            asyncio.create_task(self._keep(number, part))
            for number, part in enumerate(parts(cores, self._settings.workers))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            self._stopping.set()
            self._signal(signal.SIGTERM)
            await asyncio.wait(tasks)
        logger.info("stopped")

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._signal(signal.SIGKILL)
            return
        logger.info("stopping %d workers", len(self._processes))
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, cores: list[int]) -> None:
        """Keeps one worker running."""
        deaths = 0
        while not self._stopping.is_set():
            code, served_s = await self._run_one(number, cores)
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
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_one(self, number: int, cores: list[int]) -> tuple[int, float]:
        """Runs a worker to its end; returns its exit code, and for how many seconds it served."""
        # -P: without it, modules in the current directory would come before the installed ones.
        command = [sys.executable, "-P", "-m", "polyhead_server.worker"]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=self._environment)
        except OSError:
            logger.exception("worker %d cannot be started", number)
            return 1, 0.0
        self._processes.add(process)
        try:
            if self._stopping.is_set():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            cast(asyncio.StreamWriter, process.stdin).write(encode(self._settings, cores))
            announced = asyncio.create_task(cast(asyncio.StreamReader, process.stdout).readline())
            announced.add_done_callback(lambda line: self._note(number, cores, process, line))
            code = await self._end(process)
            announced.cancel()
            return code, time.monotonic() - self._serving.get(number, time.monotonic())
        finally:
            self._serving.pop(number, None)
            self._processes.discard(process)
            if self._metrics_folder:
                multiprocess.mark_process_dead(process.pid, self._metrics_folder)  # type: ignore[no-untyped-call]

    def _note(
        self, number: int, cores: list[int], process: asyncio.subprocess.Process, announced: asyncio.Task[bytes]
    ) -> None:
        if not announced.cancelled() and announced.result() and process in self._processes:
            self._serving[number] = time.monotonic()
            logger.info("worker %d serves on cores %s as process %d", number, cores, process.pid)

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Waits for the end of a worker, and makes one that was told to end and does not."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        try:
            return await asyncio.wait_for(ended, self._settings.drain_s + _KILL_S)
        except TimeoutError:
            logger.warning("process %d does not end; it is killed", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()


def encode(settings: Settings, cores: list[int]) -> bytes:
    """The line that a worker is started with."""
    values = dataclasses.asdict(settings) | {"bundle": str(settings.bundle)}
    return json.dumps({"settings": values, "cores": cores}).encode() + b"\n"


def decode(line: bytes) -> tuple[Settings, list[int]]:
    """What ``encode`` wrote."""
    told = json.loads(line)
    return Settings(**told["settings"] | {"bundle": Path(told["settings"]["bundle"])}), told["cores"]


@contextlib.contextmanager
def _metrics(listen: str) -> Iterator[str | None]:
    """Answers scrapes for all workers, out of files that they write to a folder; yields the folder.

    Raises:
        StartupError: The address is taken.
    """
    if not listen:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="polyhead-metrics-") as folder:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        listen_for_scrapes(listen, registry)
        yield folder

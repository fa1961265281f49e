"""A thread that works for several calls at once, each in short slices and by its share of the time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .types import Flow

_T = TypeVar("_T")
# Time after which the thread looks for a call that has had less of it.
_SLICE_S = 0.01


@dataclass(slots=True, eq=False)
class _Job(Generic[_T]):
    flow: Flow
    steps: Generator[None, None, _T]
    future: asyncio.Future[_T]
    loop: asyncio.AbstractEventLoop
    wanted: bool = True


class FairWorker:
    """Runs generators on one thread, a slice at a time: the next slice goes to the flow with the smallest virtual time.

    The virtual time of a flow is the time that the thread has worked for it, or the time of the flow that is being
    served where that is later (start-time fair queueing: Goyal et al. 1996). So a flow that comes waits for one slice,
    whatever others have brought before it, and a flow with expensive work gets no more time than one with cheap work.

    Threads: any thread may call ``close``, the event loop calls ``run``. ``_changed`` guards the fields, and
    ``worker_time`` of each flow. ``_Job.wanted`` is written by the event loop alone, and read without the lock.
    """

    def __init__(self, name: str) -> None:
        """Starts no thread yet.

        Args:
            name: Name of the thread.
        """
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, _Job[Any]]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    async def run(self, flow: Flow, steps: Generator[None, None, _T]) -> _T:
        """Exhausts ``steps`` on the thread and returns what the generator returns.

        Args:
            flow: The call that is charged for the time. Its work is done in the order in which it is submitted.
            steps: Yields wherever the thread may turn to another call.

        Raises:
            BaseException: What the generator raises; a cancellation ends it at its next step.
        """
        loop = asyncio.get_running_loop()
        job = _Job(flow, steps, loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise RuntimeError("the worker is closed")
            if self._thread.ident is None:
                self._thread.start()
            flow.worker_time = max(flow.worker_time, self._now)
            heapq.heappush(self._jobs, (flow.worker_time, next(self._numbers), job))
            self._changed.notify()
        try:
            result: _T = await job.future
        finally:
            job.wanted = False
        return result

    def close(self) -> None:
        """Lets the thread end once nothing is left to do."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _loop(self) -> None:
        while (job := self._next_job()) is not None:
            started = time.monotonic()
            done = self._work(job, started + _SLICE_S)
            with self._changed:
                job.flow.worker_time += time.monotonic() - started
                if not done:
                    heapq.heappush(self._jobs, (job.flow.worker_time, next(self._numbers), job))

    def _next_job(self) -> _Job[Any] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            self._now, _, job = heapq.heappop(self._jobs)
            return job

    def _work(self, job: _Job[_T], until: float) -> bool:
        """Runs steps for one slice; returns whether the job has ended."""
        try:
            while job.wanted:
                next(job.steps)
                if time.monotonic() >= until:
                    return False
            job.steps.close()
        except StopIteration as end:
            _resolve(job, result=end.value)
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception; the waiter raises it again
            _resolve(job, error=error)
        return True


def _resolve(job: _Job[Any], *, result: Any = None, error: BaseException | None = None) -> None:
    def resolve() -> None:
        if job.future.done():
            return
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    # The loop may be closed by now.
    with contextlib.suppress(RuntimeError):
        job.loop.call_soon_threadsafe(resolve)

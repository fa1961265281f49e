"""SIGTERM and SIGINT: the event loop handles them, and the process ends in time even if the loop does not.

A loop may be stuck, for example in writing to a log that nobody reads. So the signals are blocked in every thread, and
a thread of their own waits for them, tells the loop, and ends the process if the loop does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn, TypeVar, cast

R = TypeVar("R")

# Exit code of a process that failed, or that cut off accepted work.
EXIT_FAILED = 1
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# Seconds that the event loop has to end the process, after the end of the drain and after a second signal.
_GRACE_S = 5.0


def block() -> None:
    """Blocks the signals outside of ``handled``. Called before the process starts other threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


@contextlib.contextmanager
def handled(on_stop: Callable[[], None], drain_timeout_s: float, *, ignore_second: bool = False) -> Iterator[None]:
    """Handles SIGTERM and SIGINT within the block.

    Args:
        on_stop: Called on the running event loop for each signal.
        drain_timeout_s: Seconds from the first signal after which the process is expected to end.
        ignore_second: Whether only the first signal counts.
    """
    loop = asyncio.get_running_loop()
    left = threading.Event()
    timers: list[threading.Timer] = []

    def wait() -> None:
        while True:
            signal.sigwait(_SIGNALS)
            if left.is_set():
                return
            if not timers:
                timers.append(_exit_after(drain_timeout_s + _GRACE_S))
            elif not ignore_second:
                timers.append(_exit_after(_GRACE_S))
            # A loop that is closed belongs to a process that is ending.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_stop)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
        thread.join()
        for timer in timers:
            timer.cancel()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


async def ended_before(stop: asyncio.Event, work: Coroutine[Any, Any, R]) -> asyncio.Task[R] | None:
    """Runs work until it ends, or until ``stop`` is set, which cancels it.

    Returns:
        The task of the work, which has ended; None if it was cancelled.
    """
    running, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({cast(Any, running), stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if running.done():
        return running
    running.cancel()
    return None


def exit_in_time() -> None:
    """Ends the process if it does not end by itself within a few seconds."""
    _exit_after(_GRACE_S)


def _exit_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()
    return timer


def _exit() -> NoReturn:
    # The logger may be what the process is stuck in.
    if select.select([], [2], [], 0)[1]:
        os.write(2, b"polyhead-serve: the event loop did not end the process in time; exiting\n")
    os._exit(EXIT_FAILED)

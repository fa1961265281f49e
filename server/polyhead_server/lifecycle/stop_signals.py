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
from collections.abc import Callable
from typing import NoReturn

# Exit code of a process that failed, or that cut off accepted work.
EXIT_FAILED = 1
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# Seconds that the event loop has to end the process, after the end of the drain and after a second signal.
_GRACE_S = 5.0


def block() -> None:
    """Blocks the signals until ``handle`` takes them. Called before the process starts other threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def handle(on_stop: Callable[[], None], drain_timeout_s: float, *, ignore_second: bool = False) -> None:
    """Handles SIGTERM and SIGINT from now on.

    Args:
        on_stop: Called on the running event loop for each signal.
        drain_timeout_s: Seconds from the first signal after which the process is expected to end.
        ignore_second: Whether only the first signal counts.
    """
    loop = asyncio.get_running_loop()
    block()

    def wait() -> None:
        _wait_for_signal(loop, on_stop)
        _exit_after(drain_timeout_s + _GRACE_S)
        while True:
            _wait_for_signal(loop, on_stop)
            if not ignore_second:
                _exit_after(_GRACE_S)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _wait_for_signal(loop: asyncio.AbstractEventLoop, on_stop: Callable[[], None]) -> None:
    signal.sigwait(_SIGNALS)
    # A loop that is closed belongs to a process that is ending.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(on_stop)


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()


def _exit() -> NoReturn:
    # The logger may be what the process is stuck in.
    if select.select([], [2], [], 0)[1]:
        os.write(2, b"polyhead-serve: the event loop did not end the process in time; exiting\n")
    os._exit(EXIT_FAILED)

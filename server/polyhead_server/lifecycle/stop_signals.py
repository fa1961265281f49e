"""SIGTERM and SIGINT: the event loop handles them, and the process ends in time even if the loop does not.

A loop may be stuck, for example in writing to a log that nobody reads. Python's own signal handlers still run then, and
the threads that they start end the process.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from .entry import EXIT_FAILED

# Seconds that the event loop has to end the process, after the end of the drain and after a second signal.
_GRACE_S = 5.0


def handle(on_stop: Callable[[], None], drain_timeout_s: float, *, ignore_second: bool = False) -> None:
    """Handles SIGTERM and SIGINT from now on.

    Args:
        on_stop: Called on the running event loop for each signal.
        drain_timeout_s: Seconds from the first signal after which the process is expected to end.
        ignore_second: Whether only the first signal counts.
    """
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal signals
        signals += 1
        if signals == 1:
            _exit_after(drain_timeout_s + _GRACE_S)
        elif not ignore_second:
            _exit_after(_GRACE_S)
        loop.call_soon_threadsafe(on_stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()


def _exit() -> NoReturn:
    # The logger may be what the process is stuck in.
    if select.select([], [2], [], 0)[1]:
        os.write(2, b"polyhead-serve: the event loop did not end the process in time; exiting\n")
    os._exit(EXIT_FAILED)

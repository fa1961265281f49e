"""Work in threads that nothing waits for: neither the event loop nor the end of the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def in_daemon_thread(work: Callable[[], _T], name: str) -> asyncio.Future[_T]:
    """Runs ``work`` in a thread of its own, and returns its outcome as a future of the running event loop.

    The threads of asyncio's executor delay the end of the process until their work ends, which work on a hung file
    system or in a hung library never does.

    Args:
        work: Called in the thread.
        name: Name of the thread.
    """
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        # From here on the future cannot be cancelled, even if its waiter has gone when the work ends.
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the boundary of the thread: the waiter raises it
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(outcome)

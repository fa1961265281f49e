"""Counts the calls in progress, so that a draining server can wait for the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from grpc import aio


def when_done(context: aio.ServicerContext[Any, Any], action: Callable[[], None]) -> None:
    """Runs ``action`` once gRPC has sent a call's last byte, or has lost its client."""
    # The type stubs declare a class where gRPC accepts every callable.
    context.add_done_callback(lambda _: action())  # type: ignore[arg-type]


class ActiveCalls:
    """The calls in progress of one service. A ``with`` block counts one. For the event loop only.

    Attributes:
        count: Number of calls in progress.
    """

    def __init__(self, observe: Callable[[int], None]) -> None:
        """Starts at zero.

        Args:
            observe: Called with the new count after every change.
        """
        self.count = 0
        self._observe = observe
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Counts a call that begins."""
        self._set(self.count + 1)

    def end(self) -> None:
        """Counts a call that ends."""
        self._set(self.count - 1)

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call is in progress; returns False if that takes longer than the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _set(self, count: int) -> None:
        self.count = count
        self._observe(count)
        if count:
            self._idle.clear()
        else:
            self._idle.set()

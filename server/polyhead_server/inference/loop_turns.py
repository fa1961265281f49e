"""Turns on the event loop, so that a call with many items does not hold up the calls with few."""

from __future__ import annotations

import asyncio
from collections import deque


class LoopTurns:
    """Gives the event loop to one waiting task per iteration, in order of arrival. Event loop only.

    A task with more work than one step allows awaits ``next`` between its steps. However many such tasks there are,
    each iteration of the loop runs one of their steps; everything else that is ready runs in between. So a call with
    little work waits for a few steps, and the calls with much work share the rest equally.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def next(self) -> None:
        """Waits for the next turn."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            # A cancelled task does not use its turn.
            if not turn.done():
                turn.set_result(None)
                # The task runs in the next iteration, and the next turn is granted after it.
                asyncio.get_running_loop().call_soon(self._grant)
                return
        self._scheduled = False

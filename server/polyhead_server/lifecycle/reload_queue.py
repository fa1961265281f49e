"""Queues requests to reload: one reload runs, and one more waits for it, however many are requested."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .uninterrupted import Uninterrupted

R = TypeVar("R")


class ReloadQueue(Generic[R]):
    """Runs reloads one at a time. Requests that come while one runs share the next one.

    A request never joins the reload that is running, which may have read the bundle before it was replaced. A reload
    continues after its callers have gone.
    """

    def __init__(self, reload: Callable[[bool], Awaitable[R]]) -> None:
        """Takes the reload; its argument says whether to accept an incompatible model."""
        self._reload = reload
        self._running = asyncio.Lock()
        # By ``force``: a request must not be refused, or forced, because of another one.
        self._waiting: dict[bool, asyncio.Task[R]] = {}
        self._tasks = Uninterrupted()

    async def request(self, *, force: bool) -> R:
        """Waits for a reload that starts after this call, and returns its result or raises its error."""
        task = self._waiting.get(force)
        if task is None:
            task = self._waiting[force] = self._tasks.start(self._run(force))
        return await asyncio.shield(task)

    async def _run(self, force: bool) -> R:
        async with self._running:
            del self._waiting[force]
            return await self._reload(force)

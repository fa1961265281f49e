"""Work that continues to its end when its caller goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from polyhead_server.background import BackgroundTasks

R = TypeVar("R")


class Uninterrupted:
    """Runs work in tasks of its own. Event loop only."""

    def __init__(self) -> None:
        self._tasks = BackgroundTasks()

    def start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Starts work; its error is only raised to those that await the task."""
        task = self._tasks.start(work)
        # Marks the exception as retrieved: the caller may have gone.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Returns the result of work, which continues if the caller is cancelled."""
        return await asyncio.shield(self.start(work))

    def cancel(self) -> None:
        """Cancels all work."""
        for task in self._tasks:
            task.cancel()

"""Tasks that nothing else refers to, such as those that close what was replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class BackgroundTasks(set[asyncio.Task[Any]]):
    """The running ones of some tasks: the event loop itself keeps no task alive."""

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Runs work in a task, which stays in the set until it ends."""
        task = asyncio.create_task(work)
        self.add(task)
        task.add_done_callback(self.discard)
        return task

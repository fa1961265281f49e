"""The answers of one stream on their way out: bounded, and in request order or as they finish."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from polyhead_server.inference.types import ItemOutcome, RequestOptions

from .response_encoder import ResponseEncoder


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """One item of the stream: its id, what was wished for it, what writes its answer, and its outcome to come."""

    item_id: str
    options: RequestOptions
    writer: ResponseEncoder
    future: asyncio.Future[ItemOutcome]


class Window:
    """Between a stream's reader, which adds items, and its writer, which takes whatever is ready."""

    def __init__(self, limit: int) -> None:
        self.in_order = True
        self._limit = limit
        # In request order: every item that is on its way. Otherwise: those of them that are finished.
        self._queue: deque[Pending] = deque()
        self._unfinished: set[Pending] = set()
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    async def room(self) -> None:
        """Waits until fewer items than the limit are on their way."""
        while self._size() >= self._limit:
            self._space.clear()
            await self._space.wait()

    def add(self, pending: Pending) -> None:
        """Takes an item in."""
        self._unfinished.add(pending)
        if self.in_order:
            self._queue.append(pending)
        pending.future.add_done_callback(lambda _: self._finish(pending))

    def close(self, error: Exception | None = None) -> None:
        """No more items will come. An error is raised by ``ready`` after the last item."""
        self._closed = True
        self._error = error
        self._changed.set()

    async def ready(self) -> list[Pending]:
        """Waits for items whose outcome is known and takes all of them; none when the window is closed and empty.

        Raises:
            Exception: The error that the window was closed with, once everything before it was taken.
        """
        while not (taken := self._take()):
            if self._closed and not self._size():
                if self._error:
                    raise self._error
                return []
            self._changed.clear()
            await self._changed.wait()
        self._space.set()
        return taken

    def cancel(self) -> None:
        """Says that nobody waits for the answers any more, so that they need not be computed."""
        for pending in list(self._unfinished):
            pending.future.cancel()

    def _size(self) -> int:
        return len(self._queue) if self.in_order else len(self._queue) + len(self._unfinished)

    def _finish(self, pending: Pending) -> None:
        self._unfinished.discard(pending)
        if not self.in_order:
            self._queue.append(pending)
        self._changed.set()

    def _take(self) -> list[Pending]:
        taken = []
        while self._queue and self._queue[0].future.done():
            taken.append(self._queue.popleft())
        return taken

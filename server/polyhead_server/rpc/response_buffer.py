"""The pending answers of one stream: bounded in number, delivered in request order or in order of completion."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from polyhead_server.inference.types import ItemOutcome

from .response_encoder import AnswerEncoder


@dataclass(slots=True, eq=False)
class PendingAnswer:
    """One item of a stream whose answer has not been written yet.

    Attributes:
        item_id: Id that the answer repeats.
        encoder: Encoder of the model that computes the item, for the options of the item's message.
        future: Holds the outcome once it is known.
    """

    item_id: str
    encoder: AnswerEncoder
    future: asyncio.Future[ItemOutcome]


class ResponseBuffer:
    """Connects a stream's reader, which adds items, to its writer, which takes the answers that are ready.

    Attributes:
        in_order: Whether answers are delivered in request order. Fixed before the first item is added.
    """

    def __init__(self, limit: int) -> None:
        """Creates an empty buffer.

        Args:
            limit: Number of pending items from which ``wait_for_space`` blocks.
        """
        self.in_order = True
        self._limit = limit
        # With in_order: every pending item, in request order. Otherwise: only those whose outcome is known.
        self._queue: deque[PendingAnswer] = deque()
        # Without in_order: the items whose outcome is not known.
        self._in_progress: set[PendingAnswer] = set()
        # With in_order: the first pending item, which wakes the writer. A callback for each would cost more than the
        # rest of the buffer.
        self._awaited: PendingAnswer | None = None
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    async def wait_for_space(self) -> None:
        """Waits until fewer items than the limit are pending."""
        while self._size() >= self._limit:
            self._space.clear()
            await self._space.wait()

    def add(self, pending: PendingAnswer) -> None:
        """Adds an item."""
        if self.in_order:
            self._queue.append(pending)
            self._await_first()
        else:
            self._in_progress.add(pending)
            pending.future.add_done_callback(lambda _: self._on_done(pending))

    def close(self, error: Exception | None = None) -> None:
        """Declares that no more items will be added. ``ready`` raises ``error`` after the last item."""
        self._closed = True
        self._error = error
        self._changed.set()

    async def ready(self) -> list[PendingAnswer]:
        """Waits for items whose outcome is known and removes all of them; empty once the buffer is closed and empty.

        Raises:
            Exception: The error that the buffer was closed with, once every item before it has been taken.
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
        """Cancels every item in progress, because the client no longer reads the answers."""
        for pending in (*self._queue, *self._in_progress):
            pending.future.cancel()

    def _size(self) -> int:
        return len(self._queue) if self.in_order else len(self._queue) + len(self._in_progress)

    def _on_done(self, pending: PendingAnswer) -> None:
        self._in_progress.discard(pending)
        self._queue.append(pending)
        self._changed.set()

    def _take(self) -> list[PendingAnswer]:
        taken = []
        while self._queue and self._queue[0].future.done():
            taken.append(self._queue.popleft())
        if self.in_order:
            self._await_first()
        return taken

    def _await_first(self) -> None:
        first = self._queue[0] if self._queue else None
        if self._awaited is not first:
            self._awaited = first
            if first:
                first.future.add_done_callback(lambda _: self._changed.set())

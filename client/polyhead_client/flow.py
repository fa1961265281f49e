"""What a call holds between its input and its caller: bounded, in order, nothing lost.

::

    text --offer--> waiting --take--> in flight --accept--> ready --collect--> caller
             `--- cannot be sent: refused, answered in its turn ---^

No I/O and no locks: the sync client drives it under a ``threading.Condition``, the asyncio client on its loop, and both
use it for unary calls too.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from polyhead.v1 import item_pb2

from .conversion import Order
from .errors import InvalidRequestError, ServerError
from .results import Answer, ItemError

# One text to answer: the text, or its id and the text.
Text: TypeAlias = str | tuple[str, str]

# The server's default limit for one message, and this client's for what it sends and receives.
MAX_MESSAGE_BYTES = 16 * 2**20
# What a message holds beside its items (tasks, options) stays far below 1 KiB.
_MAX_ITEM_BYTES = MAX_MESSAGE_BYTES - 1024


class Flow:
    """The items of one call, and what became of them.

    Attributes:
        closed: True when nothing will be sent or accepted any more; answers that are ready can still be collected.
        error: Why it was closed before its end, or None.
    """

    def __init__(self, order: Order, max_in_flight: int, max_items: int, max_bytes: int) -> None:
        """Starts empty.

        Args:
            order: Of the answers; ``"request"`` makes refused items wait for the answers before theirs.
            max_in_flight: Items that may be sent and not yet answered. At least 1.
            max_items: Items in one message.
            max_bytes: Of items in one message, about; a larger item goes alone.
        """
        if max_in_flight < 1:
            raise InvalidRequestError("INVALID_ARGUMENT", f"max_in_flight: {max_in_flight} is less than 1")
        self._in_request_order = order == "request"
        self._max_in_flight = max_in_flight
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting: deque[item_pb2.Item] = deque()
        self._refused: deque[tuple[int, Answer]] = deque()  # with the number of answers that come before
        self._ready: list[Answer] = []
        # Items so far: an item that was offered is either admitted or refused.
        self._offered = self._admitted = self._answered = self._collected = 0
        self._input_ended = False
        self.closed = False
        self.error: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Items sent and not yet answered."""
        return self._admitted - len(self._waiting) - self._answered

    def may_offer(self) -> bool:
        """Whether there is room for another text, or no use in waiting for it."""
        # One message more than what may be in flight: the next one is complete when answers make room for it.
        return self.closed or self._offered - self._collected < self._max_in_flight + self._max_items

    def may_take(self) -> bool:
        """Whether ``take`` has something to give, or never will again."""
        return self.closed or (self.in_flight < self._max_in_flight if self._waiting else self._input_ended)

    def may_collect(self) -> bool:
        """Whether ``collect`` has something to give, or never will again."""
        return self.closed or bool(self._ready)

    def offer(self, text: Text) -> None:
        """Takes in a text; one that cannot be sent is answered with an error in its turn."""
        item_id, content = text if isinstance(text, tuple) else (str(self._offered), text)
        self._offered += 1
        item = _item(item_id, content)
        if isinstance(item, ItemError):
            self._refuse(Answer(item_id, error=item))
        else:
            self._admitted += 1
            self._waiting.append(item)

    def end_input(self) -> None:
        """Says that no further text comes."""
        self._input_ended = True

    def take(self) -> list[item_pb2.Item]:
        """Moves what is waiting and fits one message into flight; empty when there is nothing to send any more."""
        items: list[item_pb2.Item] = []
        size = 0
        room = 0 if self.closed else min(self._max_items, self._max_in_flight - self.in_flight)
        while self._waiting and len(items) < room:
            size += self._waiting[0].ByteSize()
            if items and size > self._max_bytes:
                break
            items.append(self._waiting.popleft())
        return items

    def accept(self, answers: list[Answer]) -> None:
        """Takes in answers from the server.

        Raises:
            ServerError: More answers came than items were sent.
        """
        if len(answers) > self.in_flight:
            raise ServerError("INTERNAL", f"the server sent {len(answers)} answers to {self.in_flight} items")
        for answer in answers:
            self._ready.append(answer)
            self._answered += 1
            while self._refused and self._refused[0][0] <= self._answered:
                self._ready.append(self._refused.popleft()[1])

    def collect(self) -> list[Answer]:
        """Hands over all answers that are ready, which makes room for as many items."""
        answers, self._ready = self._ready, []
        self._collected += len(answers)
        return answers

    def end_answers(self) -> None:
        """Says that no further answer comes."""
        missing = len(self._waiting) + self.in_flight
        if self._input_ended and not missing:
            self.close()
        else:
            self.fail(ServerError("INTERNAL", f"the server ended the call with {missing} items or more unanswered"))

    def close(self) -> None:
        """Ends it: nothing will be sent or accepted any more."""
        self.closed = True

    def fail(self, error: BaseException) -> None:
        """Ends it because of ``error``, unless it has ended before."""
        if not self.closed:
            self.error = error
            self.close()

    def _refuse(self, answer: Answer) -> None:
        if self._in_request_order and self._answered < self._admitted:
            self._refused.append((self._admitted, answer))
        else:
            self._ready.append(answer)


def _item(item_id: str, text: str) -> item_pb2.Item | ItemError:
    """The item on the wire, or why it cannot be sent. The reasons are those that a server has for the same."""
    for name, reason, value in (("item_id", "ITEM_ID_NOT_UTF8", item_id), ("text", "TEXT_NOT_UTF8", text)):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"{name} is not valid UTF-8: {error.reason} at code point {error.start}"
            return ItemError("INVALID_ARGUMENT", reason, problem)
    item = item_pb2.Item(item_id=item_id, text=text)
    if item.ByteSize() > _MAX_ITEM_BYTES:
        problem = f"the item has {item.ByteSize()} bytes; a message carries {_MAX_ITEM_BYTES}"
        return ItemError("INVALID_ARGUMENT", "ITEM_TOO_LARGE", problem)
    return item

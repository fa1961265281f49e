"""What a call holds between its input and its caller: bounded, in order, nothing lost.

::

    text --offer--> waiting --take--> sent --accept--> done --in its turn--> ready --collect--> caller
             |         ^---- lost, or refused for now ---'      ^
             `--- cannot be sent: answered in its turn ---------'

What was sent is kept until it is answered: when its connection breaks, or the server has too much to do, it is sent
again, and answered once. On the wire an item has its running number as id, the caller's id comes back from here: that
one may have any length and need not be unique.

No I/O and no locks: the sync client drives it under a ``threading.Condition``, the asyncio client on its loop, and both
use it for unary calls too.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from polyhead.v1 import item_pb2

from polyhead_client.conversion import Order, in_request_order
from polyhead_client.errors import PolyheadError, ServerError, error_named
from polyhead_client.types import Answer, ItemError

from .concurrency_limit import Window
from .message_limits import MessageLimits, has_too_many_bytes, has_too_many_items, item_of, too_large
from .retry import Retries, is_retryable

# One text to answer: the text, or its id and the text.
Text: TypeAlias = str | tuple[str, str]

# At the most so many times as many answers as items are on their way wait for one before them.
_BLOCKED = 4
# At the most, beside the item itself: its tag and its length.
_ITEM_FRAME_BYTES = 6


@dataclass(slots=True)
class _Entry:
    """An item that is not answered yet."""

    number: int
    item_id: str
    item: item_pb2.Item
    message_items: int = 0  # of the message in which it was sent the last time
    message_bytes: int = 0
    losses: int = 0  # times its call broke
    refusals: int = 0  # times the server had too much to do
    refusal: Answer | None = None  # what it said the last time


class StreamState:
    """The items of one call, and what became of them.

    Attributes:
        deadline: Of the call.
        closed: True when nothing will be sent or accepted any more; answers that are ready can still be collected.
        error: Why it was closed before its end, or None.
    """

    def __init__(
        self,
        order: Order,
        window: Window,
        retries: Retries,
        *,
        max_items: int,
        max_bytes: int,
        limits: MessageLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty.

        Args:
            order: Of the answers as they are collected; ``accept`` takes them in any order.
            window: Bounds the items that are sent and not yet answered.
            retries: Say what is sent again, and when.
            max_items: Items in one message.
            max_bytes: Of items in one message, about; a larger item goes alone.
            limits: What the server is known to take, also from other calls; None for nothing yet.
            now: The clock.
        """
        self._in_request_order = in_request_order(order)
        self._window = window
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._limits = limits or MessageLimits()
        self._retries = retries
        self.deadline = retries.deadline
        self._now = now
        self._waiting: deque[_Entry] = deque()
        self._sent: dict[str, _Entry] = {}  # by the id on the wire
        self._later: list[tuple[float, int, _Entry]] = []  # a heap, by when they may be sent again
        self._done: dict[int, Answer] = {}  # what waits for the answers before it
        self._ready: list[Answer] = []
        # Items so far, and the number of the next answer in request order.
        self._offered = self._collected = self._next = 0
        self._call = 0
        self._losses = 0  # calls in a row that broke without an answer
        self._input_ended = False
        self.closed = False
        self.error: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Items sent and not yet answered."""
        return len(self._sent)

    @property
    def unanswered(self) -> int:
        """Items that were offered and have no answer yet."""
        return len(self._waiting) + len(self._sent) + len(self._later)

    def may_begin(self) -> bool:
        """Whether another call has something to do, or there is no use in waiting for it."""
        return self.closed or self._input_ended or self.unanswered > 0

    def may_offer(self) -> bool:
        """Whether there is room for another text, or no use in waiting for it."""
        if self.closed:
            return True
        # One message more than what may be in flight: the next one is complete when answers make room for it.
        room = self._window.limit + self._max_items
        # What only waits for an answer before it takes none of it: one long text shall not stop the others.
        return self._offered - self._collected - len(self._done) < room and len(self._done) < _BLOCKED * room

    def may_take(self, call: int) -> bool:
        """Whether ``take`` has something to give to this call, or never will again."""
        self._wake()
        if self.closed or call != self._call:
            return True
        if self._waiting:
            return self.in_flight < self._window.limit
        return self._input_ended and not self._later

    def may_collect(self) -> bool:
        """Whether ``collect`` has something to give, or never will again."""
        return self.closed or bool(self._ready)

    def wait_s(self) -> float | None:
        """Seconds until time alone may change what may be done; None when it never does."""
        return max(0.0, self._later[0][0] - self._now()) if self._later else None

    def offer(self, text: Text) -> None:
        """Takes in a text; one that cannot be sent is answered with an error in its turn."""
        number = self._offered
        item_id, content = text if isinstance(text, tuple) else (str(number), text)
        self._offered += 1
        item = item_of(number, content)
        if isinstance(item, ItemError):
            self._finish(number, Answer(item_id, error=item))
        else:
            self._waiting.append(_Entry(number, item_id, item))

    def end_input(self) -> None:
        """Says that no further text comes."""
        self._input_ended = True

    def begin_call(self) -> int:
        """Says that a call begins which takes the place of the one before; returns its number.

        Where nothing is left for a call to do, this is closed instead. An input without a text still gets its call,
        which tells whether the server is there.
        """
        self._call += 1
        if self._offered and self._input_ended and not self.unanswered:
            self.close()
        return self._call

    def take(self, call: int) -> list[item_pb2.Item]:
        """Moves what is waiting and fits one message into flight; empty when this call has nothing more to send."""
        self._wake()
        if self.closed or call != self._call:
            return []
        entries: list[_Entry] = []
        size = 0
        room = min(self._max_items, self._limits.items, self._window.limit - self.in_flight)
        while self._waiting and len(entries) < room:
            more = self._waiting[0].item.ByteSize() + _ITEM_FRAME_BYTES
            if entries and size + more > min(self._max_bytes, self._limits.size_bytes):
                break
            size += more
            entries.append(self._waiting.popleft())
        for entry in entries:
            entry.message_items, entry.message_bytes = len(entries), size
            self._sent[entry.item.item_id] = entry
        if self._waiting and self.in_flight >= self._window.limit:
            self._window.filled()
        return [entry.item for entry in entries]

    def accept(self, answers: list[Answer]) -> None:
        """Takes in answers from the server.

        Raises:
            PolyheadError: An answer is to no item that was sent: the whole message was refused, or the server is wrong.
        """
        self._losses = 0
        refused: list[tuple[float, _Entry]] = []
        stray: PolyheadError | None = None
        for answer in answers:
            entry = self._sent.pop(answer.item_id, None)
            if entry is None:
                stray = stray or _stray(answer)
                continue
            own = Answer(entry.item_id, answer.result, answer.error)
            delay_s = self._delay_s(entry, answer.error)
            if delay_s is None:
                self._finish(entry.number, own)
            else:
                entry.refusal = own
                refused.append((delay_s, entry))
        if refused:
            self._postpone(refused)
        else:
            self._retries.succeeded()
        self._window.answered(len(answers) - len(refused))
        if stray:  # after the others: the call may go on with smaller messages
            raise stray

    def collect(self) -> list[Answer]:
        """Hands over all answers that are ready, which makes room for as many items."""
        answers, self._ready = self._ready, []
        self._collected += len(answers)
        return answers

    def end_answers(self) -> None:
        """Says that the call gives no further answer. Another one must follow if not everything is answered now."""
        if self._sent or not self._input_ended:
            problem = f"the server ended the call with {self.in_flight} items or more unanswered"
            self.fail(ServerError("INTERNAL", problem))
        elif not self.unanswered:
            self.close()

    def lose(self, error: PolyheadError) -> float | None:
        """Takes back what was sent and not answered, because the call broke with ``error``.

        Returns:
            Seconds to wait before the next call; None when there is none, because the error stands or all is over.
        """
        if self.closed:
            return None
        self._call += 1  # what the broken call takes from now on would be lost
        if self.repack(error):
            return 0.0
        self._losses += 1
        for entry in self._sent.values():
            entry.losses += 1
        # Also by items: one that brings down whatever reads it would go round for ever among others that are answered.
        losses = max(self._losses, *(entry.losses for entry in self._sent.values()), 0)
        self._take_back()
        delay_s = self._retries.failed(error, losses)
        if delay_s is None:
            self.fail(error)
        return delay_s

    def repack(self, error: PolyheadError) -> bool:
        """Takes back what was sent, to send it in smaller messages, if ``error`` says that one holds too much.

        It does not say which; but whatever a server refuses, it refuses the largest. An item that is too large alone is
        answered with that.
        """
        if not self._sent:
            return False
        if has_too_many_items(error):
            most = max(entry.message_items for entry in self._sent.values())
            if most == 1:
                return False
            self._limits.halve_items(most)
        elif has_too_many_bytes(error):
            largest = max(self._sent.values(), key=lambda entry: entry.message_bytes)
            if largest.message_items == 1:
                del self._sent[largest.item.item_id]
                refusal = too_large(largest.item, "the server takes no message of that size")
                self._finish(largest.number, Answer(largest.item_id, error=refusal))
            else:
                self._limits.halve_bytes(largest.message_bytes)
        else:
            return False
        self._take_back()
        return True

    def give_up(self) -> bool:
        """Lets the refusals of all items stand that wait for another try; False when others have no answer either."""
        left = [*self._sent.values(), *self._waiting, *(entry for _, _, entry in self._later)]
        refusals = [(entry.number, entry.refusal) for entry in left if entry.refusal]
        if len(refusals) < len(left):
            return False
        for number, refusal in refusals:
            self._finish(number, refusal)
        self._sent.clear()
        self._waiting.clear()
        self._later.clear()
        return True

    def close(self) -> None:
        """Ends it: nothing will be sent or accepted any more."""
        self.closed = True

    def fail(self, error: BaseException) -> None:
        """Ends it because of ``error``, unless it has ended before."""
        if not self.closed:
            self.error = error
            self.close()

    def _take_back(self) -> None:
        """Puts what was sent and not answered before what was not sent."""
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()

    def _delay_s(self, entry: _Entry, error: ItemError | None) -> float | None:
        """When to send an item again that was refused for now; None when its answer stands."""
        if error is None or not is_retryable(error):
            return None
        entry.refusals += 1
        return self._retries.delay_s(error, entry.refusals)

    def _postpone(self, refused: list[tuple[float, _Entry]]) -> None:
        """Keeps refused items back, all until the last of them may go: together they are one message."""
        due = self._now() + max(delay_s for delay_s, _ in refused)
        for _, entry in refused:
            heapq.heappush(self._later, (due, entry.number, entry))
        self._retries.refused()
        self._window.refused()

    def _wake(self) -> None:
        """Puts what may be sent again before what was never sent."""
        due: list[_Entry] = []
        while self._later and self._later[0][0] <= self._now():
            due.append(heapq.heappop(self._later)[2])
        self._waiting.extendleft(reversed(due))

    def _finish(self, number: int, answer: Answer) -> None:
        """Makes an answer ready, in request order after those before it."""
        if not self._in_request_order:
            self._ready.append(answer)
            return
        self._done[number] = answer
        while self._next in self._done:
            self._ready.append(self._done.pop(self._next))
            self._next += 1


def _stray(answer: Answer) -> PolyheadError:
    """The error for an answer to no item that was sent."""
    if answer.error is not None and not answer.item_id:
        return error_named(answer.error.code, answer.error.message, answer.error.reason)
    return ServerError("INTERNAL", f"the server answered item {answer.item_id!r}, which does not wait for an answer")

"""State of one call between its input and its caller: bounded, ordered, nothing lost.

::

    text --offer--> waiting --take--> in flight --on_answers--> completed --in order--> ready --collect--> caller
             |         ^--- stream broke, or item rejected ---'      ^
             `------- cannot be sent: becomes an error answer -------'

An item stays here until it is answered: when its stream breaks, or the server is overloaded, the item is sent again,
and it is answered once. On the wire an item's id is its running number. The caller's id is restored here, so it may
have any length and need not be unique.

No I/O and no locks: ``streaming.Stream`` holds a condition while it calls these methods, for threads and for asyncio;
``batch.BatchCall`` uses it for unary calls.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from polyhead.v1 import item_pb2

from polyhead_client.choices import Order
from polyhead_client.conversion import in_request_order
from polyhead_client.errors import InvalidRequestError, PolyheadError, error_for_code, invalid_answer
from polyhead_client.types import Answer, ItemError

from .concurrency_limit import ConcurrencyLimit
from .message_limits import MessageLimits, encode_item, has_too_many_bytes, has_too_many_items, too_large_error
from .reorder_buffer import ReorderBuffer
from .retry import RetryPolicy, is_retryable

# One text to send: the text, or its id and the text.
Text: TypeAlias = str | tuple[str, str]

# Maximum number of characters of an invalid value in a message.
_MAX_SHOWN = 40
# Maximum number of completed answers that wait for an earlier one, as a multiple of the items held otherwise.
_MAX_BLOCKED_FACTOR = 4
# Maximum overhead of an item inside a message, in bytes: its tag and its length.
_ITEM_FRAME_BYTES = 6


@dataclass(slots=True)
class _Entry:
    """An item without an answer."""

    number: int
    item_id: str
    item: item_pb2.Item
    message_items: int = 0  # size of the message in which the item was last sent
    message_bytes: int = 0
    stream_errors: int = 0  # number of streams that broke with this item in flight
    rejections: int = 0  # number of times an overloaded server rejected the item
    rejection: Answer | None = None  # the last of them


class StreamState:
    """The items of one call and the answers to them.

    Attributes:
        deadline: Deadline of the call.
        closed: True when nothing will be sent or accepted any more; answers that are ready can still be collected.
        error: The error that closed the call early, or None.
    """

    def __init__(
        self,
        order: Order,
        concurrency_limit: ConcurrencyLimit,
        retry: RetryPolicy,
        *,
        max_items: int,
        max_bytes: int,
        limits: MessageLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty.

        Args:
            order: Order in which ``collect`` returns answers; ``on_answers`` takes them in any order.
            concurrency_limit: Limit on the items in flight.
            retry: Decides what is sent again, and when.
            max_items: Maximum number of items in one message.
            max_bytes: Approximate maximum size of the items in one message; a larger item is sent alone.
            limits: What is known about the server's limits, shared between calls; None for nothing.
            now: The clock.
        """
        self._answers = ReorderBuffer(in_request_order(order))
        self._concurrency_limit = concurrency_limit
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._limits = limits or MessageLimits()
        self._retry = retry
        self.deadline = retry.deadline
        self._now = now
        self._waiting: deque[_Entry] = deque()
        self._in_flight: dict[str, _Entry] = {}  # by the id on the wire
        self._delayed: list[tuple[float, int, _Entry]] = []  # a heap of rejected items, by the time of their next try
        self._offered = self._collected = 0  # number of items
        self._call = 0
        self._stream_errors = 0  # consecutive streams that broke without an answer
        self._input_ended = False
        self.closed = False
        self.error: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Number of items sent and not yet answered."""
        return len(self._in_flight)

    @property
    def unanswered(self) -> int:
        """Number of items offered and not yet answered."""
        return len(self._waiting) + len(self._in_flight) + len(self._delayed)

    def can_start_call(self) -> bool:
        """Whether another gRPC call has work to do, or waiting for work is pointless."""
        return self.closed or self._input_ended or self.unanswered > 0

    def can_offer(self) -> bool:
        """Whether there is capacity for another text, or waiting for it is pointless."""
        if self.closed:
            return True
        # One message more than may be in flight: the next message is complete when answers make room for it.
        capacity = self._concurrency_limit.limit + self._max_items
        held = self._offered - self._collected - self._answers.blocked
        # Completed answers that wait for an earlier one are limited separately: one long text must not block the rest.
        return held < capacity and self._answers.blocked < _MAX_BLOCKED_FACTOR * capacity

    def can_take(self, call: int) -> bool:
        """Whether ``take`` returns items for this gRPC call, or never will again."""
        self._requeue_due()
        if self.closed or call != self._call:
            return True
        if self._waiting:
            return self.in_flight < self._concurrency_limit.limit
        return self._input_ended and not self._delayed

    def can_collect(self) -> bool:
        """Whether ``collect`` returns answers, or never will again."""
        return self.closed or self._answers.ready > 0

    def wait_s(self) -> float | None:
        """Seconds until a delayed item may be sent again; None without such an item."""
        return max(0.0, self._delayed[0][0] - self._now()) if self._delayed else None

    def offer(self, text: Text | Answer) -> None:
        """Adds a text; one that cannot be sent becomes an error answer in its position, where an answer stays as it is.

        Raises:
            InvalidRequestError: The text is not a ``str`` or ``(item_id, text)``.
        """
        number = self._offered
        if isinstance(text, Answer):
            self._offered += 1
            self._answers.add(number, text)
            return
        require_text(number, text)
        item_id, content = text if isinstance(text, tuple) else (str(number), text)
        self._offered += 1
        item = encode_item(number, content)
        if isinstance(item, ItemError):
            self._answers.add(number, Answer(item_id, error=item))
        else:
            self._waiting.append(_Entry(number, item_id, item))

    def end_input(self) -> None:
        """Records that the input is exhausted."""
        self._input_ended = True

    def begin_call(self) -> int:
        """Starts a gRPC call that replaces the one before, and returns its number.

        Where nothing is left to do, this closes the state instead. An empty input still gets one call, which reports
        whether the server is there.
        """
        self._call += 1
        if self._offered and self._input_ended and not self.unanswered:
            self.close()
        return self._call

    def take(self, call: int) -> list[item_pb2.Item]:
        """Moves one message of waiting items into flight; empty when this gRPC call has nothing more to send."""
        self._requeue_due()
        if self.closed or call != self._call:
            return []
        entries: list[_Entry] = []
        size = 0
        capacity = self._concurrency_limit.limit - self.in_flight
        max_items = min(self._max_items, self._limits.max_items, capacity)
        while self._waiting and len(entries) < max_items:
            item_bytes = self._waiting[0].item.ByteSize() + _ITEM_FRAME_BYTES
            if entries and size + item_bytes > min(self._max_bytes, self._limits.max_bytes):
                break
            size += item_bytes
            entries.append(self._waiting.popleft())
        for entry in entries:
            entry.message_items, entry.message_bytes = len(entries), size
            self._in_flight[entry.item.item_id] = entry
        if self._waiting and self.in_flight >= self._concurrency_limit.limit:
            self._concurrency_limit.on_full()
        return [entry.item for entry in entries]

    def on_answers(self, answers: list[Answer]) -> None:
        """Records answers from the server.

        Raises:
            PolyheadError: An answer belongs to no item in flight: the server rejected the whole message, or is at
                fault.
        """
        self._stream_errors = 0
        rejected: list[tuple[float, _Entry]] = []
        unexpected: PolyheadError | None = None
        for answer in answers:
            entry = self._in_flight.pop(answer.item_id, None)
            if entry is None:
                unexpected = unexpected or _unexpected_answer(answer)
                continue
            restored = Answer(entry.item_id, answer.result, answer.error)
            delay_s = self._retry_delay_s(entry, answer.error)
            if delay_s is None:
                self._answers.add(entry.number, restored)
            else:
                entry.rejection = restored
                rejected.append((delay_s, entry))
        if rejected:
            self._delay(rejected)
        else:
            self._retry.on_success()
        self._concurrency_limit.on_answers(len(answers) - len(rejected))
        if unexpected:  # after the other answers: the call may continue with smaller messages
            raise unexpected

    def collect(self) -> list[Answer]:
        """Returns all answers that are ready, which frees capacity for as many items."""
        answers = self._answers.pop_ready()
        self._collected += len(answers)
        return answers

    def on_stream_end(self) -> None:
        """Records that the server ended the stream; another call must follow if delayed items remain."""
        if self._in_flight or not self._input_ended:
            problem = f"the server ended the call with {self.in_flight} items or more unanswered"
            self.fail(invalid_answer(problem))
        elif not self.unanswered:
            self.close()

    def on_stream_error(self, error: PolyheadError) -> float | None:
        """Puts the items in flight back into the queue after the stream broke with ``error``.

        Returns:
            Seconds to wait before the next gRPC call; None when there is none: the error is final, or the call is over.
        """
        if self.closed:
            return None
        self._call += 1  # items that the broken call took from now on would be lost
        if self.split_message(error):
            return 0.0
        self._stream_errors += 1
        for entry in self._in_flight.values():
            entry.stream_errors += 1
        # Counted per item too: an item that crashes every server would otherwise circulate while others are answered.
        attempts = max(self._stream_errors, *(entry.stream_errors for entry in self._in_flight.values()), 0)
        self._requeue_in_flight()
        delay_s = self._retry.on_failure(error, attempts)
        if delay_s is None:
            self.fail(error)
        return delay_s

    def split_message(self, error: PolyheadError) -> bool:
        """Requeues the items in flight, to be sent in smaller messages, if ``error`` reports a message as too large.

        The error does not identify the message, but a server that rejects any message rejects the largest. An item that
        is too large by itself gets an error answer.
        """
        if not self._in_flight:
            return False
        if has_too_many_items(error):
            max_items = max(entry.message_items for entry in self._in_flight.values())
            if max_items == 1:
                return False
            self._limits.halve_items(max_items)
        elif has_too_many_bytes(error):
            largest = max(self._in_flight.values(), key=lambda entry: entry.message_bytes)
            if largest.message_items == 1:
                del self._in_flight[largest.item.item_id]
                problem = too_large_error(largest.item, "the server does not accept a message of that size")
                self._answers.add(largest.number, Answer(largest.item_id, error=problem))
            else:
                self._limits.halve_bytes(largest.message_bytes)
        else:
            return False
        self._requeue_in_flight()
        return True

    def settle_rejections(self) -> bool:
        """Makes the rejections of all remaining items final; False when some remaining item was never rejected."""
        remaining = [*self._in_flight.values(), *self._waiting, *(entry for _, _, entry in self._delayed)]
        rejections = [(entry.number, entry.rejection) for entry in remaining if entry.rejection]
        if len(rejections) < len(remaining):
            return False
        for number, rejection in rejections:
            self._answers.add(number, rejection)
        self._in_flight.clear()
        self._waiting.clear()
        self._delayed.clear()
        return True

    def close(self) -> None:
        """Ends the call: nothing will be sent or accepted any more."""
        self.closed = True

    def fail(self, error: BaseException) -> None:
        """Ends the call with ``error``, unless it has ended already."""
        if not self.closed:
            self.error = error
            self.close()

    def _requeue_in_flight(self) -> None:
        """Puts the items in flight in front of those that were never sent."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()

    def _retry_delay_s(self, entry: _Entry, error: ItemError | None) -> float | None:
        """Seconds until a rejected item may be sent again; None when its answer is final."""
        if error is None or not is_retryable(error):
            return None
        entry.rejections += 1
        return self._retry.delay_s(error, entry.rejections)

    def _delay(self, rejected: list[tuple[float, _Entry]]) -> None:
        """Delays rejected items, all by the longest of their delays, so that they share a message again."""
        due = self._now() + max(delay_s for delay_s, _ in rejected)
        for _, entry in rejected:
            heapq.heappush(self._delayed, (due, entry.number, entry))
        self._retry.on_rejection()
        self._concurrency_limit.on_overload()

    def _requeue_due(self) -> None:
        """Puts delayed items whose time has come in front of those that were never sent."""
        due: list[_Entry] = []
        while self._delayed and self._delayed[0][0] <= self._now():
            due.append(heapq.heappop(self._delayed)[2])
        self._waiting.extendleft(reversed(due))


def require_text(number: int, text: object) -> None:
    """Rejects an element of the input that is neither a text nor an id with a text.

    Args:
        number: Its position in the input, from 0.
        text: The element.

    Raises:
        InvalidRequestError: The message names the position and the value.
    """
    if isinstance(text, str | Answer):
        return
    what = _describe(text)
    if isinstance(text, tuple) and len(text) == 2:
        item_id, content = text
        if isinstance(item_id, str) and isinstance(content, str):
            return
        what = _describe(content) if isinstance(item_id, str) else f"a tuple whose id is {_describe(item_id)}"
    problem = f"text {number} is {what}; expected a str or (item_id, text) with two str"
    raise InvalidRequestError("INVALID_ARGUMENT", problem, "INVALID_TEXT")


def _describe(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    shown = f" {value!r:.{_MAX_SHOWN}}" if isinstance(value, bytes | int | float) else ""
    return f"of type {type(value).__name__}{shown}"


def _unexpected_answer(answer: Answer) -> PolyheadError:
    """Builds the error for an answer that belongs to no item in flight."""
    if answer.error is not None and not answer.item_id:
        return error_for_code(answer.error.code, answer.error.message, answer.error.reason)
    return invalid_answer(f"the server answered item {answer.item_id!r}, which is not in flight")

"""Who rides together: one queue for all calls and tasks, and batches of texts of about the same length.

A worker that becomes free takes the entry whose turn it is and then, of its nearest neighbours in length, as many as
make the pass worth most: the more texts, the more share its start, and the more padding it computes. It does not wait
for more to come. Entries that were cancelled or whose deadline passed are let go before anything is computed for them.

Turns are dealt out fairly among calls, by tokens: a single text does not wait behind thousands that a stream sent
before it. Each entry is stamped with the virtual time at which it would start if all calls were served side by side,
and the earliest comes first (weighted fair queueing: Demers, Keshav, Shenker 1989; start times: Goyal et al. 1996).
Neighbours ride out of turn, which is charged to their calls. Only a call of which nothing waits is let off its last
text: a stream that sends the next when that was answered owes nothing then, like a client that makes a call for each,
and need not pay in rounds of all who wait. So that nobody pays for long for what others could not use, one pass in a
few is headed by whoever has waited longest.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .types import ItemOutcome, TokenizedText

# One pass in so many is headed by the entry that has waited longest.
_OLDEST_EVERY = 8
# So many entries that have left may be remembered, besides as many as wait, before they are cleared away.
_REMEMBERED = 1000


@dataclass(slots=True, eq=False)
class Flow:
    """One call, a stream or a unary one, as far as the queue shares out turns.

    Attributes:
        waiting_tokens: Tokens of its entries that wait.
        whole: Whether its answers go out together, when the last is there: a unary call's.
        taken_tokens: Of a whole call, tokens of its entries that have left while others wait.
        finish: Virtual time at which the last of its entries would be finished; the queue's own business.
        last_tokens: Tokens of that entry.
    """

    waiting_tokens: int = 0
    whole: bool = False
    in_service_tokens: int = 0
    finish: float = 0.0
    last_tokens: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One text, or one window of a long text, in the queue.

    Attributes:
        call: Whose text it is.
        tokens: The text.
        ids: Token ids that the model will read: one of the text's windows.
        future: Where the outcome goes. Cancelled when the answer is not wanted any more.
        deadline: ``time.monotonic()`` second after which nobody wants the answer; None for no deadline.
        arrived_ns: When its message arrived (``time.monotonic_ns()``).
        tokenized_ns: When its tokens were ready and it entered the queue.
        tokenization_ns: How long its message's tokenization took.
        length: Tokens that the model will read, and at least 1.
        waiting: Whether it is in the queue; the queue's own business.
    """

    call: Flow
    tokens: TokenizedText
    ids: list[int]
    future: asyncio.Future[ItemOutcome]
    deadline: float | None
    arrived_ns: int
    tokenized_ns: int
    tokenization_ns: int
    length: int = field(init=False)
    waiting: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.length = max(len(self.ids), 1)


@dataclass(frozen=True)
class Batch:
    """What a worker is handed.

    Attributes:
        entries: To be computed together.
        expired: Those whose deadline passed while they waited.
        backlog: Whether enough for another pass was left waiting.
    """

    entries: list[Entry]
    expired: list[Entry]
    backlog: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the entries."""
        return sum(entry.length for entry in self.entries)

    @property
    def padding(self) -> int:
        """Tokens of padding that the pass computes besides."""
        longest = max((entry.length for entry in self.entries), default=0)
        return longest * len(self.entries) - self.tokens


@dataclass(frozen=True)
class BatchLimits:
    """What a pass may be, and what it costs.

    Attributes:
        max_tokens: Of a pass, with padding.
        max_padding: As a share of the real tokens.
        start_tokens: What starting a pass costs, as the tokens that are computed in that time.
    """

    max_tokens: int
    max_padding: float
    overhead_tokens: float

    def admit(self, count: int, longest: int, real_tokens: int, budget: int) -> bool:
        """Whether ``count`` texts with ``real_tokens`` together, at most ``longest`` each, may ride together.

        ``budget`` bounds the real tokens as well.
        """
        padded = min(self.max_tokens, (1 + self.max_padding) * real_tokens)
        return count * longest <= padded and real_tokens <= budget

    def worth(self, count: int, longest: int, real_tokens: int) -> float:
        """Real tokens over all that the pass costs."""
        return real_tokens / (self.overhead_tokens + count * longest)


class BatchScheduler:
    """Entries in, batches out; safe to use from any thread.

    Entries stand in one lane for each length, a heap by their turn, and those with a deadline also in a heap, so that
    the entry whose turn it is, its neighbours in length and what has expired are found without looking at every entry.
    What was cancelled or has expired is only marked, and passed over when its turn comes.

    Attributes:
        waiting: Entries that wait.
        waiting_tokens: Tokens of all entries that wait.
        taken_tokens: Those of whole calls that have left before the rest of their call.
        calls: Calls that have entries waiting.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        # Virtual start, running number, entry.
        self._lanes: dict[int, list[tuple[float, int, Entry]]] = {}
        # The virtual time: tokens that each waiting call was served so far, if all had been waiting all the time.
        self._now = 0.0
        # In order of arrival.
        self._arrivals: deque[Entry] = deque()
        self._turns = itertools.count(1)
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._idle_workers = 0
        self._closed = False
        # Entries in the lanes that are only marked.
        self._marked = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self.in_service_tokens = 0
        self.calls = 0

    def put(self, entries: Iterable[Entry]) -> None:
        """Adds entries and wakes as many workers as may find work."""
        with self._changed:
            before = self.waiting
            for entry in entries:
                self._enter(entry)
            # Each that wakes wants the interpreter, also the one that finds nothing.
            self._changed.notify(self.waiting - before)
            self._clear_away()

    def take(self) -> Batch | None:
        """Waits for work; None when the queue is closed and empty."""
        with self._changed:
            self._idle_workers += 1
            while not self.waiting and not self._closed:
                self._changed.wait()
            expired = self._expire(time.monotonic())
            entries = self._choose()
            self._idle_workers -= 1
            backlog = self.waiting_tokens >= self._limits.max_tokens
            return Batch(entries, expired, backlog) if entries or expired or not self._closed else None

    def drop(self, entry: Entry) -> None:
        """Lets an entry go whose answer is not wanted any more; nothing happens when it has left."""
        with self._changed:
            self._mark(entry)

    def close(self) -> None:
        """Lets ``take`` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, entry: Entry) -> None:
        call, number = entry.call, next(self._numbers)
        owed = call.finish if call.waiting_tokens else call.finish - call.last_tokens
        start = max(self._now, owed)
        call.finish, call.last_tokens = start + entry.length, entry.length
        heapq.heappush(self._lanes.setdefault(entry.length, []), (start, number, entry))
        self._arrivals.append(entry)
        if entry.deadline is not None:
            heapq.heappush(self._deadlines, (entry.deadline, number, entry))
        self.calls += not call.waiting_tokens
        call.waiting_tokens += entry.length
        entry.waiting = True
        self.waiting += 1
        self.waiting_tokens += entry.length

    def _expire(self, now: float) -> list[Entry]:
        """Lets go those whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, entry = heapq.heappop(self._deadlines)
            if self._mark(entry) and not entry.future.cancelled():
                expired.append(entry)
        return expired

    def _choose(self) -> list[Entry]:
        """Takes the entry whose turn it is and those of its neighbours in length that should ride with it."""
        for length in list(self._lanes):
            self._pass_over(length)
        if not self._lanes:
            return []
        waiting_tokens, head = self.waiting_tokens, self._pop_head()
        # Two idle workers with few entries each take their part, instead of one taking all while the other looks on.
        budget = max(-(-waiting_tokens // self._idle_workers), head.length)
        # The event loop may have cancelled some of them meanwhile.
        riders = [self._pop(length) for length in self._neighbours(head.length, budget) if length in self._lanes]
        return [head, *riders]

    def _neighbours(self, first: int, budget: int) -> list[int]:
        """The lengths of the entries that ride with one of the length ``first``, nearest first."""
        limits, lengths = self._limits, []
        count, longest, real_tokens, best = 1, first, first, limits.worth(1, first, first)
        riding = 0
        for length in sorted(self._lanes, key=lambda length: abs(length - first)):
            longest_with = max(longest, length)
            for _, _, entry in self._lanes[length]:
                if not entry.waiting:
                    continue
                if not limits.admit(count + 1, longest_with, real_tokens + length, budget):
                    break
                count, longest, real_tokens = count + 1, longest_with, real_tokens + length
                lengths.append(length)
                worth = limits.worth(count, longest, real_tokens)
                if worth >= best:
                    best, riding = worth, len(lengths)
        return lengths[:riding]

    def _pop_head(self) -> Entry:
        """Takes the entry whose turn it is, or now and then the oldest."""
        # The event loop may cancel any of them at any moment, also the last that waited.
        while self._arrivals and (not self._arrivals[0].waiting or self._arrivals[0].future.cancelled()):
            self._arrivals.popleft()
        if not self._arrivals or next(self._turns) % _OLDEST_EVERY:
            return self._pop(min(self._lanes, key=lambda length: self._lanes[length][0]))
        entry = self._arrivals.popleft()
        self._serve(entry)
        # It stays in its lane, like one that was cancelled.
        self._marked += 1
        self._pass_over(entry.length)
        return entry

    def _pop(self, length: int) -> Entry:
        _, _, entry = heapq.heappop(self._lanes[length])
        self._serve(entry)
        self._pass_over(length)
        return entry

    def _serve(self, entry: Entry) -> None:
        self._now += entry.length / self.calls
        if entry.call.whole:
            entry.call.in_service_tokens += entry.length
            self.in_service_tokens += entry.length
        self._leave(entry)

    def _pass_over(self, length: int) -> None:
        """Removes from the front of a lane what need not be computed, and the lane when nothing is left."""
        lane = self._lanes[length]
        while lane and (not lane[0][2].waiting or lane[0][2].future.cancelled()):
            _, _, entry = heapq.heappop(lane)
            # It may have been cancelled a moment ago.
            self._mark(entry)
            self._marked -= 1
        if not lane:
            del self._lanes[length]

    def _mark(self, entry: Entry) -> bool:
        """Counts an entry of a lane as gone; returns whether it was waiting."""
        if entry.waiting:
            self._leave(entry)
            # Its call was promised the time, and did not get it.
            entry.call.finish -= entry.length
            self._marked += 1
            return True
        return False

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        self.waiting -= 1
        self.waiting_tokens -= entry.length
        entry.call.waiting_tokens -= entry.length
        if not entry.call.waiting_tokens:
            self.calls -= 1
            self.in_service_tokens -= entry.call.in_service_tokens
            entry.call.in_service_tokens = 0

    def _clear_away(self) -> None:
        """Forgets entries that have left, when there are so many that this costs little for each of them."""
        if self._marked > self.waiting + _REMEMBERED:
            lanes = {length: [one for one in lane if one[2].waiting] for length, lane in self._lanes.items()}
            self._lanes = {length: lane for length, lane in lanes.items() if lane}
            for lane in self._lanes.values():
                heapq.heapify(lane)
            self._arrivals = deque(entry for entry in self._arrivals if entry.waiting)
            self._marked = 0
        if len(self._deadlines) > 2 * self.waiting + _REMEMBERED:
            self._deadlines = [one for one in self._deadlines if one[2].waiting]
            heapq.heapify(self._deadlines)

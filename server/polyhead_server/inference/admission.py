"""May it enter? Decided by how long an item would wait, before anything is spent on it.

One rule for all calls: an item enters if it can be expected to be answered before its deadline, and if the queue has
room for it. The queue deals out turns fairly among calls, so what an item waits for is its own call's share: tokens of
its call, times the calls that wait, but never more than all that waits; divided by the rate at which passes were seen
to consume tokens; and, for long texts, for those before it to be tokenized. A unary call that waits counts whole, also
what was computed of it already: its answers go out together, and calls that come later have their turns before its last
one. So the tokens of all such calls, over the rate, are the time that one of them takes (Little's law). A stream waits
for room before it asks, which holds back its client, and leaves half of the queue to others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from polyhead_server.errors import ExpiredError, OverloadedError, ServerError

from .scheduler import BatchScheduler, Flow

# Weight of the newest pass in the moving averages: about the last 20 passes count.
_NEWEST = 0.1
# Share of the time until the deadline that the expected wait may fill: some wait longer, and were computed in vain.
_CAUTION = 0.65
# Share of the queue that streams may fill.
_STREAMS = 0.5
# Code points a second that are tokenized, until it was seen: a third of what an idle core does.
_CHARACTERS_PER_S = 1e6


class Size(NamedTuple):
    """How large an item is, as far as can be told before it is tokenized.

    Attributes:
        tokens: That it may have.
        characters: Code points of it that wait for tokenization; 0 where that is done at once.
    """

    tokens: int
    characters: int


class Admission:
    """Keeps the queue short enough that what enters is worth computing. Not thread-safe: for the event loop."""

    def __init__(
        self, queue: BatchScheduler, workers: int, max_queue_s: float, max_queue_tokens: int, tokens_per_s: float
    ) -> None:
        """Starts with a rate that was measured before.

        Args:
            queue: Where admitted items go.
            workers: Passes that run side by side.
            max_queue_s: Expected wait from which on items are refused, and streams wait.
            max_queue_tokens: Tokens that may wait.
            tokens_per_s: Of one worker. 0 admits everything that has room until the first pass was seen.
        """
        self._queue = queue
        self._workers = workers
        self._max_queue_s = max_queue_s
        self._max_queue_tokens = max_queue_tokens
        # Tokens, as far as they can be guessed, and code points of admitted texts that are not tokenized yet.
        self._reserved_tokens = 0
        self._characters = 0
        self._characters_per_s = _CHARACTERS_PER_S
        self._tokens_per_s = tokens_per_s * workers
        self._pass_s = 0.0
        self._waiters: list[tuple[Flow, asyncio.Future[None]]] = []
        self._waking = False

    def learn(self, tokens: int, compute_s: float, *, backlog: bool) -> None:
        """Takes the rate from a finished pass of one worker.

        Args:
            tokens: Of the pass, without padding.
            compute_s: Its duration.
            backlog: Whether enough for another pass was waiting; if not, it may have been a small one, which says
                nothing about the rate of large ones.
        """
        self._pass_s += (compute_s - self._pass_s) * (_NEWEST if self._pass_s else 1)
        if backlog or not self._tokens_per_s:
            rate = tokens / max(compute_s, 1e-6) * self._workers
            self._tokens_per_s += (rate - self._tokens_per_s) * (_NEWEST if self._tokens_per_s else 1)

    def tokenized(self, characters: int, seconds: float) -> None:
        """Takes the rate of tokenization from texts that were tokenized apart from the event loop."""
        self._characters_per_s += (characters / max(seconds, 1e-6) - self._characters_per_s) * _NEWEST

    def expected_wait_s(self) -> float:
        """Seconds until everything that waits now is computed; 0 while no rate is known."""
        return self._seconds(self._queue.waiting_tokens + self._reserved_tokens)

    def admit(
        self, call: Flow, sizes: Sequence[Size], deadline: float | None, *, patient: bool
    ) -> tuple[int, ServerError | None]:
        """How many of a message's items may enter; reserves their places until ``release``.

        A unary message enters whole or not at all: a part of it would delay others, and its client would have to come
        back for the rest. Only one that is too large even for an empty queue enters as far as it fits.

        Args:
            call: Whose items they are.
            sizes: Of each item.
            deadline: ``time.monotonic()`` second after which the answers are worthless.
            patient: True for a stream, which waited for ``room`` and is only held to its deadline.

        Returns:
            The number of items that may enter, from the first on, and why the others may not.
        """
        if _expired(deadline):
            return 0, ExpiredError()
        limit_s = self._limit_s(deadline, patient=patient)
        waiting = self._queue.waiting_tokens + self._reserved_tokens
        before = waiting + self._queue.in_service_tokens
        calls = self._queue.calls + (not call.waiting_tokens)
        own = characters = 0
        refusal: ServerError | None = None
        for entered, size in enumerate(sizes):  # noqa: B007  used after the loop
            # Trying costs nobody anything.
            nothing_before = not waiting + own
            own, characters = own + size.tokens, characters + size.characters
            wait_s = self._wait_s(before + own, (call.waiting_tokens + own) * calls, characters)
            refusal = None if nothing_before else self._refusal(waiting + own, wait_s, limit_s, patient=patient)
            if refusal:
                break
        else:
            entered = len(sizes)
        if refusal and not patient and self._fits_alone(sizes, limit_s):
            entered = 0
        self._reserve(sizes[:entered])
        return entered, refusal

    def _refusal(self, waiting: int, wait_s: float, limit_s: float, *, patient: bool) -> ServerError | None:
        """Why an item may not enter that would make so many tokens wait, and wait for so long itself."""
        if not patient and waiting > self._max_queue_tokens:
            return OverloadedError.full(waiting, self._max_queue_tokens, self._seconds(waiting))
        return OverloadedError.late(wait_s, limit_s) if wait_s > limit_s else None

    def _fits_alone(self, sizes: Iterable[Size], limit_s: float) -> bool:
        """Whether a message may enter when nothing is before it."""
        tokens, characters = map(sum, zip(*sizes, strict=True))
        return tokens <= self._max_queue_tokens and self._wait_s(tokens, tokens, characters) <= limit_s

    def release(self, sizes: Iterable[Size]) -> None:
        """Gives reserved places back: their items are in the queue, or gone."""
        self._reserve(sizes, sign=-1)
        # They may have been all that was in the way, and when they are gone no pass will come to wake anybody.
        self.wake()

    def _reserve(self, sizes: Iterable[Size], sign: int = 1) -> None:
        for size in sizes:
            self._reserved_tokens += sign * size.tokens
            self._characters += sign * size.characters

    async def room(self, call: Flow) -> None:
        """Waits until there is room for a stream's next message."""
        while not self._has_room(call):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((call, waiter))
            await waiter

    def wake(self) -> None:
        """Lets those who wait for room look again soon; called whenever something left the queue."""
        if self._waiters and not self._waking:
            self._waking = True
            # Once for all that leave together, such as the items of a stream that is cancelled.
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        waiters, self._waiters = self._waiters, []
        for call, waiter in waiters:
            if waiter.done():
                continue
            if self._has_room(call):
                waiter.set_result(None)
            else:
                self._waiters.append((call, waiter))

    def _has_room(self, call: Flow) -> bool:
        """Streams fill half of the queue; beyond, each still has one message in it, for its turn comes."""
        waiting = self._queue.waiting_tokens + self._reserved_tokens
        if not call.waiting_tokens:
            return waiting < self._max_queue_tokens
        return waiting <= _STREAMS * self._max_queue_tokens and self._seconds(waiting) <= _STREAMS * self._max_queue_s

    def _limit_s(self, deadline: float | None, *, patient: bool) -> float:
        left_s = float("inf") if deadline is None else _CAUTION * (deadline - time.monotonic())
        return left_s if patient else min(left_s, self._max_queue_s)

    def _wait_s(self, waiting: int, share: int, characters: int) -> float:
        # Texts that are tokenized at once do not wait for those that are not.
        tokenization_s = (self._characters + characters) / self._characters_per_s if characters else 0.0
        return self._seconds(min(waiting, share)) + self._pass_s + tokenization_s

    def _seconds(self, tokens: int) -> float:
        return tokens / self._tokens_per_s if self._tokens_per_s else 0.0


def _expired(deadline: float | None) -> bool:
    return deadline is not None and deadline <= time.monotonic()

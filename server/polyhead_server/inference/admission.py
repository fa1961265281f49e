"""Admission control: rejects items that would wait too long, before they are tokenized.

One rule for all calls: an item is admitted if it can be expected to be answered before its deadline, and if the queue
has capacity for it. The scheduler shares the engine fairly among calls, so the expected wait of an item is its own
call's share: the tokens of its call, times the calls that wait, but never more than all waiting tokens, of which those
of equal texts count once; divided by the measured token rate. For texts that are tokenized off the event loop, the time
of the tokenization thread is added, which is shared in the same way. A unary call that waits counts whole, including
the part of it that was computed already: its answers go out together, and calls that come later are served before its
last text. So the tokens of all such calls, divided by the rate, are the time that one of them takes (Little's law).

The capacity is shared as well. A call that has nothing in the queue may always put an item there; beyond that, a call
may use what is free, and its equal share of the capacity when nothing is free. So no call can fill the queue for the
others. A unary message that does not fit is rejected. A stream waits for capacity, which pushes back on its client, and
its message enters the queue in parts as capacity comes. Streams leave half of the queue to unary calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from polyhead_server.errors import ExpiredError, OverloadedError, ServerError

from .token_accounting import TokenAccounting
from .types import EstimatedSize, Flow

# Weight of the newest batch in the moving averages: about the last 20 batches count.
EWMA_ALPHA = 0.1
# Share of the time until the deadline that the expected wait may fill. Some items wait longer than expected, and would
# be computed in vain.
DEADLINE_SAFETY_FACTOR = 0.65
# Share of the queue that streams may fill.
STREAM_QUEUE_SHARE = 0.5
# Tokenization rate in code points a second until one is measured: a third of what an idle core does.
_INITIAL_CHARACTERS_PER_S = 1e6


class Admission:
    """Keeps the queue short enough that every admitted item is worth computing. Event loop only, not thread-safe."""

    def __init__(
        self, accounting: TokenAccounting, workers: int, max_queue_s: float, max_queue_tokens: int, tokens_per_s: float
    ) -> None:
        """Starts with a token rate that was measured before.

        Args:
            accounting: Counts what waits; admitted items are reserved there.
            workers: Batches that run side by side.
            max_queue_s: Expected wait from which on unary items are rejected, and streams wait.
            max_queue_tokens: Tokens that may wait.
            tokens_per_s: Token rate of one worker. 0 admits everything that has capacity until a batch was observed.
        """
        self._accounting = accounting
        self._workers = workers
        self._max_queue_s = max_queue_s
        self._max_queue_tokens = max_queue_tokens
        self._characters_per_s = _INITIAL_CHARACTERS_PER_S
        self._tokens_per_s = tokens_per_s * workers
        self._batch_s = 0.0
        self._waiters: deque[tuple[Flow, asyncio.Future[None]]] = deque()
        # Waiters that the current round of waking has not looked at yet.
        self._unchecked_waiters = 0

    @property
    def tokens_per_s(self) -> float:
        """Measured token rate of all workers together; 0 while unknown."""
        return self._tokens_per_s

    def observe_batch(self, tokens: int, compute_s: float, *, backlog: bool) -> None:
        """Updates the token rate from a finished batch of one worker.

        Args:
            tokens: Real tokens of the batch, without padding.
            compute_s: Duration of the batch.
            backlog: Whether enough for another batch was waiting. If not, the batch may have been a small one, which
                says nothing about the rate of large ones.
        """
        self._batch_s += (compute_s - self._batch_s) * (EWMA_ALPHA if self._batch_s else 1)
        if backlog or not self._tokens_per_s:
            rate = tokens / max(compute_s, 1e-6) * self._workers
            self._tokens_per_s += (rate - self._tokens_per_s) * (EWMA_ALPHA if self._tokens_per_s else 1)

    def observe_tokenization(self, characters: int, seconds: float) -> None:
        """Updates the tokenization rate.

        Args:
            characters: Code points of ordinary texts that were tokenized off the event loop.
            seconds: Time that the tokenizer worked for them, without waiting.
        """
        self._characters_per_s += (characters / max(seconds, 1e-6) - self._characters_per_s) * EWMA_ALPHA

    def expected_wait_s(self) -> float:
        """Seconds until everything that waits now is computed, equal texts once; 0 while no rate is known."""
        return self._seconds(self._accounting.distinct_tokens)

    def admit(
        self, flow: Flow, sizes: Sequence[EstimatedSize], deadline: float | None, *, blocking: bool
    ) -> tuple[int, ServerError | None]:
        """Decides how many of a message's items are admitted, and reserves their tokens until ``release``.

        A unary message is admitted whole or not at all: a part of it would delay others, and its client would have to
        come back for the rest. Only a message that is too large even for an empty queue is admitted as far as it fits.

        Args:
            flow: The call that the items belong to.
            sizes: Estimated size of each item.
            deadline: ``time.monotonic()`` second after which the answers are useless.
            blocking: True for a stream, which waits in ``wait_for_capacity`` instead of being rejected.

        Returns:
            The number of admitted items, counted from the first, and the error of the others. Where a stream gets no
            error, the others have to wait for capacity.
        """
        if deadline is not None and deadline <= time.monotonic():
            return 0, ExpiredError()
        limit_s = self._limit_s(deadline, blocking=blocking)
        if blocking:
            sizes = sizes[: self._count_with_capacity(flow, sizes)]
        admitted, rejection = self.first_rejected(flow, sizes, limit_s, blocking=blocking)
        if rejection and not blocking and self._fits_empty_queue(sizes, limit_s):
            admitted = 0
        self._accounting.reserve(flow, sizes[:admitted])
        return admitted, rejection

    def first_rejected(
        self, flow: Flow, sizes: Sequence[EstimatedSize], limit_s: float, *, blocking: bool
    ) -> tuple[int, ServerError | None]:
        """Finds the first item that may not be admitted. Changes nothing.

        Args:
            flow: The call that the items belong to.
            sizes: Estimated size of each item.
            limit_s: Longest wait that may be expected.
            blocking: True for a stream, for which the queue's token limit does not count.

        Returns:
            The index of that item and its error; the number of items and None when all may be admitted.
        """
        queue = self._accounting.snapshot()
        pending, own = queue.waiting_tokens + queue.reserved_tokens, flow.pending_tokens
        distinct = pending - queue.duplicate_tokens
        flows = queue.pending_flows + (not own)
        offloaded_flows = queue.offloaded_flows + (not flow.reserved_characters)
        share = self._max_queue_tokens / flows
        tokens = characters = 0
        for index, size in enumerate(sizes):
            # With nothing before the item, trying delays no other item.
            try_anyway = pending + tokens == 0
            # A call that has nothing in the queue is not rejected for what others have there.
            entitled = own + tokens == 0
            tokens, characters = tokens + size.tokens, characters + size.characters
            if try_anyway:
                continue
            if not blocking and not entitled and pending + tokens > self._max_queue_tokens and own + tokens > share:
                wait_s = self._seconds(distinct + tokens)
                return index, OverloadedError.full(pending + tokens, self._max_queue_tokens, wait_s)
            # Texts that are tokenized inline do not wait for those that are not.
            ahead = (
                min(
                    queue.reserved_characters + characters,
                    (flow.reserved_characters + characters) * offloaded_flows,
                )
                if characters
                else 0
            )
            before = min(distinct + queue.in_service_tokens + tokens, (own + tokens) * flows)
            wait_s = self._wait_s(before, ahead)
            if wait_s > limit_s:
                return index, OverloadedError.late(wait_s, limit_s)
        return len(sizes), None

    def release(self, flow: Flow, sizes: Sequence[EstimatedSize]) -> None:
        """Ends the reservation of admitted items: they are in the queue now, or gone."""
        self._accounting.release(flow, sizes)
        # The reservations may have been all that was in the way, and no batch will come to wake the waiters for them.
        self.wake()

    async def wait_for_capacity(self, flow: Flow) -> None:
        """Waits until the queue has capacity for an item of a stream.

        One waiter is woken at a time: the next one is looked at only after the first has reserved its items.
        """
        while not self.has_capacity(flow):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((flow, waiter))
            await waiter

    def wake(self) -> None:
        """Lets waiting streams look again soon; must be called whenever something leaves the queue."""
        idle = not self._unchecked_waiters
        # Once for all entries that leave together, for example the items of a cancelled stream.
        self._unchecked_waiters = len(self._waiters)
        if idle and self._waiters:
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        while self._unchecked_waiters:
            self._unchecked_waiters -= 1
            flow, waiter = self._waiters.popleft()
            if waiter.done():
                continue
            if self.has_capacity(flow):
                waiter.set_result(None)
                # The task of the waiter runs before this, because it was scheduled first.
                if self._unchecked_waiters:
                    asyncio.get_running_loop().call_soon(self._wake)
                return
            self._waiters.append((flow, waiter))

    def has_capacity(self, flow: Flow) -> bool:
        """Returns whether a stream may put another item into the queue."""
        return not flow.pending_tokens or self._stream_capacity(flow) >= 0

    def _stream_capacity(self, flow: Flow) -> float:
        """Returns how many tokens a stream may add: what is free of half the queue, or up to an equal share of it."""
        limit = STREAM_QUEUE_SHARE * self._max_queue_tokens
        if self._tokens_per_s:
            limit = min(limit, STREAM_QUEUE_SHARE * self._max_queue_s * self._tokens_per_s)
        flows = max(self._accounting.pending_flows + (not flow.pending_tokens), 1)
        return max(limit - self._accounting.pending_tokens, limit / flows - flow.pending_tokens)

    def _count_with_capacity(self, flow: Flow, sizes: Sequence[EstimatedSize]) -> int:
        """Returns how many items of a stream the queue has capacity for."""
        if not self.has_capacity(flow):
            return 0
        left = self._stream_capacity(flow)
        for count, size in enumerate(sizes):
            left -= size.tokens
            # The first item may exceed the capacity: it would fit at no other time either.
            if left < 0 and count:
                return count
        return len(sizes)

    def _fits_empty_queue(self, sizes: Sequence[EstimatedSize], limit_s: float) -> bool:
        """Returns whether a whole message could be admitted if nothing were before it."""
        tokens, characters = map(sum, zip(*sizes, strict=True))
        return tokens <= self._max_queue_tokens and self._wait_s(tokens, characters) <= limit_s

    def _limit_s(self, deadline: float | None, *, blocking: bool) -> float:
        left_s = float("inf") if deadline is None else DEADLINE_SAFETY_FACTOR * (deadline - time.monotonic())
        return left_s if blocking else min(left_s, self._max_queue_s)

    def _wait_s(self, tokens: int, characters: int) -> float:
        """Time to tokenize so many code points and to compute so many tokens, in one more batch than now."""
        return self._seconds(tokens) + self._batch_s + characters / self._characters_per_s

    def _seconds(self, tokens: int) -> float:
        return tokens / self._tokens_per_s if self._tokens_per_s else 0.0

"""Token accounting: how much work is inside the server, counted in one place."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from .types import Entry, EstimatedSize, Flow


class TokenSnapshot(NamedTuple):
    """Counters of ``TokenAccounting`` that were read under one lock and agree with each other.

    Attributes:
        waiting_items: Entries that wait.
        waiting_tokens: Their tokens.
        in_service_tokens: Tokens of unary flows that left the queue before the rest of their flow.
        waiting_flows: Flows that have entries waiting.
        reserved_tokens: Estimated tokens of admitted items that are not in the queue yet.
        reserved_characters: Code points of those items that are tokenized off the event loop.
        pending_flows: Flows that have entries waiting or items reserved.
        offloaded_flows: Flows that have ``reserved_characters``.
        duplicate_tokens: Those of the waiting tokens that are not computed, because an equal entry waits as well.
    """

    waiting_items: int
    waiting_tokens: int
    in_service_tokens: int
    waiting_flows: int
    reserved_tokens: int
    reserved_characters: int
    pending_flows: int
    offloaded_flows: int
    duplicate_tokens: int


class TokenAccounting:
    """Counts the work inside the server; the only writer of its own counters and of those of each ``Flow``.

    An admitted item is *reserved*, with an estimated size, until it is tokenized. Then it *waits*, as one entry or as
    one entry per window, until it leaves the queue: taken for computation, dropped or expired. Entries of a unary flow
    that were taken while others of the flow still wait are *in service*: all answers of the flow go out together, so
    the flow occupies the server as a whole.

    Invariants, whenever ``lock`` is free:

    - ``waiting_items`` is the number of entries whose ``waiting`` is True. ``waiting_tokens`` is the sum of their
      lengths, and the sum of ``waiting_tokens`` over all flows.
    - ``waiting_flows`` is the number of flows whose ``waiting_tokens`` is not 0.
    - ``in_service_tokens`` is the sum over all flows; a flow's is 0 unless the flow is unary and has entries waiting.
    - ``reserved_tokens`` and ``reserved_characters`` are the sums of the sizes that were reserved and not released, and
      the sums over all flows.
    - ``pending_flows`` and ``offloaded_flows`` are the numbers of flows whose ``pending_tokens`` and
      ``reserved_characters`` are not 0.
    - ``duplicate_tokens`` is the sum of the lengths of waiting entries without the first of each key.

    Threads: the scheduler calls ``enqueue``, ``take``, ``remove`` and ``count_duplicates`` from any thread while it
    holds ``lock``. The other methods take the lock. A single counter may be read without it: it is one integer, and it
    may be outdated at once.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waiting_items = 0
        self.waiting_tokens = 0
        self.in_service_tokens = 0
        self.waiting_flows = 0
        self.reserved_tokens = 0
        self.reserved_characters = 0
        self.pending_flows = 0
        self.offloaded_flows = 0
        self.duplicate_tokens = 0

    @property
    def pending_tokens(self) -> int:
        """Tokens that wait now or will wait once they are tokenized."""
        return self.waiting_tokens + self.reserved_tokens

    @property
    def distinct_tokens(self) -> int:
        """Pending tokens, those of equal entries once: they are computed once."""
        return self.pending_tokens - self.duplicate_tokens

    def snapshot(self) -> TokenSnapshot:
        """Reads all counters under the lock."""
        with self.lock:
            return TokenSnapshot(
                self.waiting_items,
                self.waiting_tokens,
                self.in_service_tokens,
                self.waiting_flows,
                self.reserved_tokens,
                self.reserved_characters,
                self.pending_flows,
                self.offloaded_flows,
                self.duplicate_tokens,
            )

    def enqueue(self, entry: Entry) -> None:
        """Counts an entry that enters the queue. Requires the lock."""
        flow, length = entry.flow, entry.length
        self.waiting_flows += not flow.waiting_tokens
        self.pending_flows += not flow.pending_tokens
        flow.waiting_tokens += length
        entry.waiting = True
        self.waiting_items += 1
        self.waiting_tokens += length

    def take(self, entry: Entry) -> None:
        """Counts an entry that leaves the queue to be computed. Requires the lock."""
        if entry.flow.unary:
            entry.flow.in_service_tokens += entry.length
            self.in_service_tokens += entry.length
        self.remove(entry)

    def remove(self, entry: Entry) -> None:
        """Counts an entry that leaves the queue, for whatever reason. Requires the lock."""
        flow, length = entry.flow, entry.length
        entry.waiting = False
        self.waiting_items -= 1
        self.waiting_tokens -= length
        flow.waiting_tokens -= length
        if not flow.waiting_tokens:
            self.waiting_flows -= 1
            self.pending_flows -= not flow.reserved_tokens
            self.in_service_tokens -= flow.in_service_tokens
            flow.in_service_tokens = 0

    def count_duplicates(self, tokens: int) -> None:
        """Counts tokens of equal entries that wait, or that wait no longer if negative. Requires the lock."""
        self.duplicate_tokens += tokens

    def reserve(self, flow: Flow, sizes: Iterable[EstimatedSize]) -> None:
        """Counts admitted items of a flow that are not tokenized yet."""
        self._add(flow, *_total(sizes))

    def release(self, flow: Flow, sizes: Iterable[EstimatedSize]) -> None:
        """Ends reservations: their items are in the queue now, or gone."""
        tokens, characters = _total(sizes)
        self._add(flow, -tokens, -characters)

    def _add(self, flow: Flow, tokens: int, characters: int) -> None:
        with self.lock:
            before = bool(flow.pending_tokens), bool(flow.reserved_characters)
            flow.reserved_tokens += tokens
            flow.reserved_characters += characters
            self.reserved_tokens += tokens
            self.reserved_characters += characters
            self.pending_flows += bool(flow.pending_tokens) - before[0]
            self.offloaded_flows += bool(flow.reserved_characters) - before[1]


def _total(sizes: Iterable[EstimatedSize]) -> tuple[int, int]:
    tokens = characters = 0
    for size in sizes:
        tokens += size.tokens
        characters += size.characters
    return tokens, characters

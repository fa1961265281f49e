"""Entries of the scheduler's queue. Requires a running event loop."""

from __future__ import annotations

import asyncio
import itertools

from polyhead_server.inference.types import Batch, Entry, Flow, ItemOutcome, TokenizedText

_clock = itertools.count()


def entry(length: int, deadline: float | None = None, flow: Flow | None = None) -> Entry:
    """Makes an entry that is younger than all before it, of a flow of its own unless one is given."""
    future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
    ids = [7] * length
    return Entry(flow or Flow(), TokenizedText((ids,), length), ids, future, deadline, 0, next(_clock), 0)


def lengths(batch: Batch | None) -> list[int]:
    """Returns the lengths of a batch's entries."""
    assert batch is not None
    return [one.length for one in batch.entries]

"""Entries of the scheduler's queue. Requires a running event loop."""

from __future__ import annotations

import asyncio
import itertools
import time

from polyhead_server.inference.admission import Admission
from polyhead_server.inference.scheduler import BatchScheduler
from polyhead_server.inference.types import Batch, Entry, EstimatedSize, Flow, ItemOutcome, TokenizedText

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


def sizes(*tokens: int) -> list[EstimatedSize]:
    """Makes the sizes of texts that are tokenized inline."""
    return [EstimatedSize(number, 0) for number in tokens]


def put(scheduler: BatchScheduler, tokens: int, flow: Flow | None = None) -> None:
    """Puts one entry into the queue."""
    scheduler.put([entry(tokens, flow=flow)])


def admits(admission: Admission, size: int, deadline_s: float | None = None, flow: Flow | None = None) -> bool:
    """Returns whether an item of a unary call is admitted; leaves nothing reserved."""
    flow, deadline = flow or Flow(), None if deadline_s is None else time.monotonic() + deadline_s
    admitted, _ = admission.admit(flow, sizes(size), deadline, blocking=False)
    admission.release(flow, sizes(size)[:admitted])
    return admitted == 1

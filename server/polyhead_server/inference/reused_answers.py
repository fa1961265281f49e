"""Outcomes of entries that are not computed for themselves: from the answer cache, or with an equal entry."""

from __future__ import annotations

from collections.abc import Sequence

from .answer_cache import AnswerCache
from .types import Entry, ItemOutcome, OutcomeFuture, Result, Timings


def resolve(future: OutcomeFuture, outcome: ItemOutcome) -> None:
    """Sets the outcome of a future unless it is resolved or cancelled."""
    if not future.done():
        future.set_result(outcome)


def resolve_shared(entries: Sequence[Entry], outcome: ItemOutcome) -> None:
    """Resolves the futures of entries with the outcome that an equal entry has, and timings of their own."""
    for entry in entries:
        own = outcome
        if isinstance(outcome, Result):
            own = Result(outcome.output, entry.tokens, _shared_timings(entry, outcome.timings))
        resolve(entry.future, own)


def _shared_timings(entry: Entry, timings: Timings) -> Timings:
    """Returns the timings of an entry that may have come after the start, and even after the end, of its batch."""
    finished_ns = max(timings.finished_ns, entry.tokenized_ns)
    started_ns = max(timings.finished_ns - timings.compute_ns, entry.tokenized_ns)
    return Timings(
        tokenization_ns=entry.tokenization_ns,
        queue_ns=started_ns - entry.tokenized_ns,
        compute_ns=finished_ns - started_ns,
        total_ns=finished_ns - entry.arrived_ns,
        batch_items=timings.batch_items,
        batch_tokens=timings.batch_tokens,
        finished_ns=finished_ns,
    )


def answer_from_cache(entries: Sequence[Entry], cache: AnswerCache) -> list[Entry]:
    """Resolves the futures of entries whose output is in the cache; returns the others."""
    outputs = cache.get_many([entry.key or b"" for entry in entries])
    for entry, output in zip(entries, outputs, strict=True):
        if output is not None:
            total_ns = entry.tokenized_ns - entry.arrived_ns
            timings = Timings(entry.tokenization_ns, 0, 0, total_ns, 0, 0, entry.tokenized_ns)
            resolve(entry.future, Result(output, entry.tokens, timings))
    return [entry for entry, output in zip(entries, outputs, strict=True) if output is None]

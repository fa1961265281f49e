"""Counts the answers of a pipeline during a canary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from polyhead_server.errors import ExpiredError, InternalError, ModelReplacedError, OverloadedError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Message, OutcomeFuture, Result

from .histogram import LogHistogram
from .parameters import Answers

# Errors that a model, or the process that computes it, is to blame for. Others are mistakes of the client.
_FAILURES = (ExpiredError, InternalError, ModelReplacedError, OverloadedError)


class AnswerCounts:
    """Counts the answers of a pipeline. Event loop only."""

    def __init__(self) -> None:
        self._texts = 0
        self._errors: Counter[str] = Counter()
        self._latency = LogHistogram()

    def observe(self, _: Model, __: Message, futures: Sequence[OutcomeFuture]) -> None:
        """Receives a message; see ``Intake.observers``."""
        for future in futures:
            future.add_done_callback(self._count)

    def snapshot(self) -> Answers:
        """Returns the counts so far."""
        return Answers(self._texts, dict(self._errors), self._latency.counts(), self._latency.total)

    def _count(self, future: OutcomeFuture) -> None:
        if future.cancelled():
            return
        outcome = future.result()
        if isinstance(outcome, Result):
            self._texts += 1
            self._latency.add(outcome.timings.total_ns / 1e9)
        elif isinstance(outcome, _FAILURES):
            self._texts += 1
            self._errors[outcome.reason] += 1

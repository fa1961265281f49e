"""Counts the traffic of one process: every batch that it computes, within a bound of CPU time and of memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from polyhead_server.inference.engine_core import ObserveOutcomes
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Entry, ItemOutcome, ModelOutput, Result, TokenizedText
from polyhead_server.process_reports import DriftCounts
from polyhead_server.settings import Settings

from .counting import Counter, Rows
from .exchange import TOTALS, encode
from .measures import measures_of
from .sketch import Sketch

# Texts that are counted at once: 30 us of numpy calls then cost less than a microsecond each.
CHUNK = 64
# Part of the time that counting may take, and the seconds of CPU time that a quiet server saves for a burst.
_CPU_SHARE = 0.01
_MAX_CREDIT_S = 0.1


class DriftMonitor:
    """Counts the texts of the model that serves. A model that replaces it begins anew.

    Event loop only, as ``EngineCore`` is. Each text is counted once, by its first window, when it is computed; texts
    that are answered with the computation of an equal one are not.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Counts nothing yet.

        Args:
            settings: Define window and buckets.
            clock: Time in seconds, the same for all processes of the machine.
            cpu_clock: CPU time of the calling thread in seconds.
        """
        self._settings = settings
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._traffic: _Traffic | None = None
        self._problem = "no model serves yet"

    def watch(self, model: Model) -> ObserveOutcomes | None:
        """Begins to count the texts of a model that will serve from now on.

        Returns:
            Receives the entries and outcomes of every batch; None if nothing is counted.
        """
        self._traffic = None
        if not self._settings.drift_window_s:
            self._problem = "the server does not count its traffic (--drift-window-s 0)"
        elif model.source.manifest.reference is None:
            self._problem = f"{model.source.model_id} has no reference: export it from a run with validation texts"
        else:
            self._traffic = _Traffic(model, self._settings, self._clock, self._cpu_clock)
            return self._traffic.observe
        return None

    def counts(self) -> DriftCounts:
        """Returns what was counted of the model that serves."""
        return self._traffic.counts() if self._traffic else DriftCounts(self._problem)


class _Traffic:
    """The texts of one model."""

    def __init__(
        self, model: Model, settings: Settings, clock: Callable[[], float], cpu_clock: Callable[[], float]
    ) -> None:
        manifest = model.source.manifest
        self._model = model
        self._counter = Counter(manifest, measures_of(manifest))
        self._limits = (settings.drift_window_s, settings.drift_min_distance)
        buckets = math.ceil(settings.drift_window_s / settings.drift_bucket_s)
        self._sketch = Sketch(TOTALS + self._counter.width, settings.drift_bucket_s, buckets)
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._credit_s, self._credited_at = _MAX_CREDIT_S, clock()
        self._uncounted = 0
        # Waiting texts: less than CHUNK and a batch.
        self._waiting: list[tuple[ModelOutput, TokenizedText, Sequence[int]]] = []

    def observe(self, entries: Sequence[Entry], outcomes: Sequence[ItemOutcome]) -> None:
        """Counts a batch, or leaves it out if counting has taken its share of the time."""
        texts = [
            (outcome.output, entry.tokens, entry.ids)
            for entry, outcome in zip(entries, outcomes, strict=True)
            if isinstance(outcome, Result) and entry.is_first_window
        ]
        if self._credit_s <= 0 and not self._has_credit():
            self._uncounted += len(texts)
            return
        self._waiting += texts
        if len(self._waiting) >= CHUNK:
            self._flush()

    def counts(self) -> DriftCounts:
        self._flush()
        numbers, blocks = self._sketch.blocks(self._clock())
        model_id, measures = self._model.source.model_id, self._counter.measures
        return DriftCounts("", model_id, measures, *self._limits, tuple(numbers.tolist()), encode(blocks))

    def _has_credit(self) -> bool:
        now = self._clock()
        earned = _CPU_SHARE * (now - self._credited_at)
        self._credit_s, self._credited_at = min(self._credit_s + earned, _MAX_CREDIT_S), now
        return self._credit_s > 0

    def _flush(self) -> None:
        begin = self._cpu_clock()
        self._has_credit()
        waiting, self._waiting = self._waiting, []
        counts: NDArray[np.float64] = np.zeros(TOTALS + self._counter.width)
        counts[:TOTALS] = len(waiting), self._uncounted
        if waiting:
            counts[TOTALS:] = self._counter.count(self._rows(waiting))
        if counts[:TOTALS].any():
            self._sketch.add(counts, self._clock())
        self._uncounted = 0
        self._credit_s -= self._cpu_clock() - begin

    def _rows(self, texts: Sequence[tuple[ModelOutput, TokenizedText, Sequence[int]]]) -> Rows:
        model, count = self._model, len(texts)
        heads = model.source.manifest.heads
        embeddings = np.concatenate([output.embedding for output, _, _ in texts]).reshape(count, -1)
        probabilities = {
            head.name: np.concatenate([output.probabilities[index] for output, _, _ in texts]).reshape(count, -1)
            for index, head in enumerate(heads)
        }
        tokens = np.array([tokens.seen for _, tokens, _ in texts])
        return Rows(
            probabilities,
            tokens,
            tokens > model.source.manifest.max_tokens,
            self._read_tokens([ids for _, _, ids in texts]),
            embeddings,
            model.novelty.score(embeddings) if model.novelty else None,
        )

    def _read_tokens(self, texts: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Returns the number of tokens of some texts, without special tokens, and of unknown ones among them."""
        tokenizer = self._model.tokenizer
        read = sum(map(len, texts)) - tokenizer.special_tokens * len(texts)
        unknown = tokenizer.unknown_id
        return max(read, 0), 0 if unknown is None else sum([ids.count(unknown) for ids in texts])

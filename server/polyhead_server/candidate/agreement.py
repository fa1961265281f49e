"""Counts how far a candidate's answers agree with those of the served model, text by text, in bounded memory.

The definitions are those of ``polyhead-export compare``, which compares two bundles on a file of texts.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.inference.head_answers import applying, predicted, value_of

from .histogram import LogHistogram
from .report import EmbeddingComparison, Example, HeadComparison

Floats = NDArray[np.float32]
# Different cells of a matrix that are kept: a head of many labels has millions.
MAX_CELLS = 20_000
MAX_EXAMPLE_CHARACTERS = 280
# Pairs of vectors that are kept to see whether texts are nearest to themselves, and their bytes.
MAX_PAIRS, MAX_PAIR_BYTES = 500, 16 * 2**20
# As in ``polyhead-export compare``: lowest share of texts that are nearest to themselves, in one space.
_RECOGNIZED = 0.9
_ROUNDING = 1e-6


def heads_in_both(served: bundle.Manifest, candidate: bundle.Manifest) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Pairs the heads of two models.

    Returns:
        The places of each head that both have with the same kind, and the reason for each other head, by name.
    """
    places = {head.name: place for place, head in enumerate(candidate.heads)}
    both: list[tuple[int, int]] = []
    reasons = {name: "only the candidate has it" for name in places if name not in {one.name for one in served.heads}}
    for place, head in enumerate(served.heads):
        if head.name not in places:
            reasons[head.name] = "only the served model has it"
        elif (other := candidate.heads[places[head.name]]).kind != head.kind:
            reasons[head.name] = f"{head.kind} in the served model, {other.kind} in the candidate"
        else:
            both.append((place, places[head.name]))
    return both, dict(sorted(reasons.items()))


class HeadCounts:
    """Counts of one head. Not safe for threads."""

    def __init__(self, served: bundle.Head, candidate: bundle.Head, keep_texts: int) -> None:
        """Begins with no texts.

        Args:
            served: The head of the served model.
            candidate: The head of the candidate, of the same kind.
            keep_texts: Number of changed texts to keep.
        """
        self._heads = served, candidate
        self._kind = served.kind
        self._labels = tuple(dict.fromkeys([*served.labels, *candidate.labels]))
        places = {label: place for place, label in enumerate(self._labels)}
        self._places = [np.array([places[label] for label in head.labels], np.intp) for head in self._heads]
        self._cells: dict[tuple[int, int], int] = {}
        self._other_texts = self._compared = self._changed = 0
        self._weighted = self._difference = 0.0
        self._examples: deque[Example] = deque(maxlen=keep_texts)

    def add(self, text: str, served: Floats, candidate: Floats) -> None:
        """Counts the numbers of both models for a text: (numbers,) each, see ``head_answers``."""
        numbers = served, candidate
        self._compared += 1
        if self._kind == "regression":
            values = [float(value_of(head, one)) for head, one in zip(self._heads, numbers, strict=True)]
            self._difference += abs(values[0] - values[1])
            return
        changed = self._add_label_sets(numbers) if self._kind == "multilabel" else self._add_labels(numbers)
        self._changed += changed
        if changed and self._examples.maxlen:
            short = text if len(text) <= MAX_EXAMPLE_CHARACTERS else f"{text[:MAX_EXAMPLE_CHARACTERS]} ..."
            answers = (self._answer(place, one) for place, one in enumerate(numbers))
            self._examples.append(Example(short, *answers))
        if self._heads[0].labels == self._heads[1].labels:
            self._difference += self._distance(numbers)

    def report(self) -> HeadComparison:
        """Returns the counts so far."""
        served, candidate = self._heads
        multilabel, regression = self._kind == "multilabel", self._kind == "regression"
        count = max(self._compared, 1)
        comparable = regression or served.labels == candidate.labels
        return HeadComparison(
            name=served.name,
            kind=self._kind,
            rows=self._labels,
            columns=("both", "served alone", "candidate alone") if multilabel else self._labels,
            cells=tuple((*place, texts) for place, texts in sorted(self._cells.items())),
            other_texts=self._other_texts,
            compared=self._compared,
            changed=self._changed,
            weighted=None if multilabel or regression else self._weighted / count,
            difference=self._difference / count if comparable else None,
            only_served=tuple(label for label in served.labels if label not in candidate.labels),
            only_candidate=tuple(label for label in candidate.labels if label not in served.labels),
            examples=tuple(self._examples),
        )

    def _add_labels(self, numbers: tuple[Floats, Floats]) -> bool:
        row, column = (
            int(places[predicted(head, one)])
            for places, head, one in zip(self._places, self._heads, numbers, strict=True)
        )
        self._count(row, column)
        if row != column:
            self._weighted += min(self._confidence(one) for one in numbers)
        return row != column

    def _add_label_sets(self, numbers: tuple[Floats, Floats]) -> bool:
        old, new = (
            set(places[applying(head, one)].tolist())
            for places, head, one in zip(self._places, self._heads, numbers, strict=True)
        )
        for column, labels in enumerate((old & new, old - new, new - old)):
            for label in labels:
                self._count(label, column)
        return old != new

    def _count(self, row: int, column: int) -> None:
        place = row, column
        if place in self._cells or len(self._cells) < MAX_CELLS:
            self._cells[place] = self._cells.get(place, 0) + 1
        else:
            self._other_texts += 1

    def _confidence(self, numbers: Floats) -> float:
        """Probability of the more probable side or label."""
        best = float(numbers.max())
        return max(best, 1 - best) if self._kind == "sigmoid" else best

    def _distance(self, numbers: tuple[Floats, Floats]) -> float:
        if self._kind == "ordinal":
            old, new = (int(predicted(head, one)) for head, one in zip(self._heads, numbers, strict=True))
            return float(abs(old - new))
        differences = np.abs(numbers[0].astype(np.float64) - numbers[1])
        return float(differences.sum() / 2 if self._kind == "softmax" else differences.mean())

    def _answer(self, model: int, numbers: Floats) -> str:
        head = self._heads[model]
        if self._kind == "multilabel":
            labels = zip(head.labels, applying(head, numbers), strict=True)
            return ", ".join(label for label, applies in labels if applies)
        return head.labels[int(predicted(head, numbers))]


class EmbeddingCounts:
    """Counts of the embeddings. Not safe for threads."""

    def __init__(self, *, same_space: bool, sizes: tuple[int, int]) -> None:
        """Begins with no texts.

        Args:
            same_space: Whether the fingerprints of the spaces are equal.
            sizes: Dimensions of the served model's embedding and of the candidate's.
        """
        self._same_space = same_space
        self._same_size = sizes[0] == sizes[1]
        self._texts = 0
        self._sum = 0.0
        self._least = 1.0
        # Of 1 - cosine, whose small values matter.
        self._distances = LogHistogram()
        self._max_pairs = min(MAX_PAIRS, MAX_PAIR_BYTES // (8 * max(sizes)))
        self._pairs: dict[bytes, tuple[Floats, Floats]] = {}

    def add(self, served: Floats, candidate: Floats) -> None:
        """Counts the vectors of both models for a text: (dimensions,) each."""
        self._texts += 1
        if not self._same_size:
            return
        first, second = (one / max(float(np.linalg.norm(one)), 1e-12) for one in (served, candidate))
        cosine = float(first @ second)
        self._sum += cosine
        self._least = min(self._least, cosine)
        self._distances.add(max(1 - cosine, 0.0))
        if len(self._pairs) < self._max_pairs:
            # Equal texts have equal vectors; each counts once.
            self._pairs.setdefault(served.tobytes(), (first, second))

    def report(self) -> EmbeddingComparison:
        """Returns the counts so far."""
        if not self._same_size:
            return EmbeddingComparison("other size", self._texts)
        if not self._texts:
            return EmbeddingComparison("same" if self._same_space else "unknown")
        recognized = self._recognized()
        space = "same"
        if not self._same_space:
            few = len(self._pairs) < 2
            space = "unknown" if few else "comparable" if recognized >= _RECOGNIZED else "other"
        low = 1 - self._distances.quantile(0.95)
        return EmbeddingComparison(space, self._texts, self._sum / self._texts, low, self._least, recognized)

    def _recognized(self) -> float:
        first, second = (np.stack(side) for side in zip(*self._pairs.values(), strict=True))  # (pairs, dimensions) x 2
        crossed = first @ second.T  # (pairs, pairs)
        return float((np.diag(crossed) >= crossed.max(axis=0) - _ROUNDING).mean())

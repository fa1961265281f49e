"""Counts the texts of a batch into one vector, in which each measure has its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.inference import head_answers
from polyhead_server.process_reports import Measure

from .measures import CONFIDENCE_RANGES, FIRST_TOKENS, NOVELTY_RANGES, slices

Floats = NDArray[np.floating[Any]]
# A length beyond 4 * 2 ** 30 tokens does not exist.
_LENGTH_ENDS = FIRST_TOKENS * 2 ** np.arange(30)


@dataclass(frozen=True)
class Rows:
    """N texts and their answers, as far as they are known.

    Attributes:
        probabilities: (N, numbers) of heads, by name; see ``head_answers`` for the numbers.
        tokens: (N,) tokens before truncation.
        truncated: (N,) whether a part of the text was not read.
        read_tokens: Number of tokens read, without special tokens, and of those that the tokenizer does not know; None
            if that is unknown.
        embeddings: (N, dimensions); None if they are unknown.
        novelty: (N,) 0 to 1; None if it is unknown.
    """

    probabilities: Mapping[str, Floats]
    tokens: NDArray[np.integer[Any]]
    truncated: NDArray[np.bool_]
    read_tokens: tuple[int, int] | None = None
    embeddings: Floats | None = None
    novelty: Floats | None = None


class Counter:
    """Counts texts for the measures of one model.

    Attributes:
        measures: The measures.
        width: Length of a vector of counts.
    """

    def __init__(self, manifest: bundle.Manifest, measures: Sequence[Measure]) -> None:
        self.measures = tuple(measures)
        self.width = sum(measure.width for measure in measures)
        self._places = [(measure, place) for measure, place in slices(measures)]
        self._heads = {head.name: head for head in manifest.heads}
        reference = manifest.reference
        self._edges = {name: np.asarray(one.edges) for name, one in reference.heads.items()} if reference else {}

    def count(self, rows: Rows) -> NDArray[np.float64]:
        """Returns the counts of N texts, (width,); 0 where something is unknown."""
        counts = np.zeros(self.width)
        for measure, place in self._places:
            found = self._head(measure, rows) if measure.head else _text(measure, rows)
            if found is not None:
                counts[place] = found
        return counts

    def _head(self, measure: Measure, rows: Rows) -> NDArray[Any] | None:
        numbers, head = rows.probabilities.get(measure.head), self._heads[measure.head]
        if numbers is None:
            return None
        values = np.asarray(numbers, dtype=np.float32)
        if measure.name == "confidence":
            return _ranges(head_answers.confidence(head, values), CONFIDENCE_RANGES)
        if head.kind == "multilabel":
            return np.append(head_answers.applying(head, values).sum(axis=0), len(values))
        if head.kind == "regression":
            bins = np.searchsorted(self._edges[head.name][1:-1], values[:, 0], side="right")
        else:
            bins = head_answers.predicted(head, values)
        return np.bincount(bins, minlength=len(measure.bins))


def _text(measure: Measure, rows: Rows) -> NDArray[Any] | None:
    bins = len(measure.bins)
    match measure.name:
        case "tokens":
            places = np.minimum(np.searchsorted(_LENGTH_ENDS, rows.tokens), bins - 1)
            return np.bincount(places, minlength=bins)
        case "truncated":
            return np.bincount(rows.truncated.astype(np.intp), minlength=2)
        case "unknown_tokens" if rows.read_tokens is not None:
            read, unknown = rows.read_tokens
            return np.array([read - unknown, unknown])
        case "novelty" if rows.novelty is not None:
            return _ranges(rows.novelty, NOVELTY_RANGES)
        case "embedding" if rows.embeddings is not None:
            return np.append(rows.embeddings.sum(axis=0, dtype=np.float64), len(rows.embeddings))
    return None


def _ranges(values: Floats, count: int) -> NDArray[np.intp]:
    """Counts values from 0 to 1 in equal ranges."""
    return np.bincount(np.minimum(values * count, count - 1).astype(np.intp), minlength=count)

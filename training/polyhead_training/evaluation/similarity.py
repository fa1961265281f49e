"""What the sentence embedding is worth: cosines of pairs of texts against how alike people found them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .probabilities import Floats


@dataclass(frozen=True)
class Correlations:
    """How the cosines of pairs of texts go with their scores, -1 to 1; None where one of the two never changes.

    Attributes:
        spearman: Correlation of the ranks; ties share their mean rank.
        pearson: Correlation of the values.
    """

    spearman: float | None
    pearson: float | None


@dataclass(frozen=True)
class Similarity:
    """What training did to the sentence embedding.

    Attributes:
        pairs: Pairs of texts.
        before: With the backbone as it was.
        after: With the trained model.
    """

    pairs: int
    before: Correlations
    after: Correlations

    def to_json(self) -> dict[str, Any]:
        """The figures as ``evaluation.json`` has them."""
        return {
            "pairs": self.pairs,
            "spearman_before": self.before.spearman,
            "spearman_after": self.after.spearman,
            "pearson_before": self.before.pearson,
            "pearson_after": self.after.pearson,
        }


def correlations(first: Floats, second: Floats, scores: Floats) -> Correlations:
    """Correlates cosines with scores.

    Args:
        first: (P, H) embeddings of the first texts, of any length.
        second: (P, H) embeddings of the second texts.
        scores: (P,) how alike they are, on any scale.
    """
    cosines = np.einsum("ph,ph->p", _scaled(first), _scaled(second))
    return Correlations(spearman=_pearson(_ranks(cosines), _ranks(scores)), pearson=_pearson(cosines, scores))


def _scaled(vectors: Floats) -> NDArray[np.float64]:
    values = np.asarray(vectors, dtype=np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places])


def _pearson(first: Floats, second: Floats) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])

"""Quality of the sentence embedding: correlation of cosine similarities with human similarity scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encodings import Form
from .numbers import correlation
from .probabilities import Floats


@dataclass(frozen=True)
class Correlations:
    """Correlation of the pairs' cosine similarities with their scores, -1 to 1; None where either is constant.

    Attributes:
        spearman: Rank correlation; ties have their mean rank.
        pearson: Correlation of the values.
    """

    spearman: float | None
    pearson: float | None


@dataclass(frozen=True)
class FormCorrelations:
    """Rank correlations of one form of the embedding, before and after training."""

    form: Form
    before: float | None
    after: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns an element of ``forms`` in ``evaluation.json``."""
        return {**self.form._asdict(), "spearman_before": self.before, "spearman_after": self.after}


@dataclass(frozen=True)
class Similarity:
    """Effect of training on the sentence embedding.

    Attributes:
        pairs: Number of text pairs.
        before: Correlations with the untrained backbone.
        after: Correlations with the trained model.
        forms: Rank correlations of the first dimensions and of the encodings of the embedding.
    """

    pairs: int
    before: Correlations
    after: Correlations
    forms: Sequence[FormCorrelations] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``similarity`` in ``evaluation.json``."""
        return {
            "pairs": self.pairs,
            "spearman_before": self.before.spearman,
            "spearman_after": self.after.spearman,
            "pearson_before": self.before.pearson,
            "pearson_after": self.after.pearson,
            **({"forms": [form.to_json() for form in self.forms]} if self.forms else {}),
        }


def correlations(first: Floats, second: Floats, scores: Floats) -> Correlations:
    """Correlates the cosine similarities of pairs with their scores.

    Args:
        first: (P, H) embeddings of the first texts, of any norm.
        second: (P, H) embeddings of the second texts.
        scores: (P,) similarity scores, on any scale.
    """
    cosines = np.einsum("ph,ph->p", _normalized(first), _normalized(second))
    return Correlations(
        spearman=correlation("spearmanr", cosines, scores), pearson=correlation("pearsonr", cosines, scores)
    )


def _normalized(vectors: Floats) -> NDArray[np.float64]:
    values = np.asarray(vectors, dtype=np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))

"""Prediction sets: labels of a softmax head among which the true one is with a chosen probability.

::

    validation logits --fit_prediction_sets--> PredictionSets (threshold)
    logits of a split --score_prediction_sets--> SetScore (coverage, mean size)

Split conformal prediction with the probability of the true label as the score (LAC: Sadinle et al., arXiv 1609.00451;
Angelopoulos and Bates, arXiv 2107.07511, section 1). A set holds each label whose probability reaches the threshold,
and the most probable label in any case, so that it is never empty. With n validation rows, the threshold is the k-th
lowest probability of a true label, k = floor((n + 1) * (1 - coverage)). Of a further text that is exchangeable with
them, the true label falls below it with a probability of at most k / (n + 1).

LAC has the smallest sets on average; adaptive sets (APS: Romano et al., arXiv 2006.02544) are larger, to be more even
among easy and difficult texts. The promise is about all texts together, not about those of one label.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .probabilities import Floats, Integers, labelled, probabilities
from .selective import interval

# More than the rounding error of (n + 1) * (1 - coverage).
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PredictionSets:
    """What decides the prediction sets of a head.

    Attributes:
        coverage: Wanted share of texts whose true label is in the set, 0 to 1.
        threshold: Lowest probability of a label in a set; None where there are too few rows.
        rows: Validation rows that it was fitted on.
    """

    coverage: float
    threshold: float | None
    rows: int

    def describe(self, head: str) -> str:
        """Returns a sentence for the terminal."""
        if self.threshold is None:
            fewest = math.ceil(1 / (1 - self.coverage) - 1 - _TOLERANCE)
            return (
                f"warning: head {head!r} has no prediction sets: a coverage of {self.coverage:g} requires at least "
                f"{fewest:,} validation rows, not {self.rows:,}"
            )
        return f"head {head!r}: prediction sets hold labels from a probability of {self.threshold:.4g} on"


@dataclass(frozen=True)
class SetScore:
    """Coverage and size of a head's prediction sets, on the labelled rows of a split.

    Attributes:
        sets: What decides them.
        coverage: Share of the rows whose true label is in the set, 0 to 1; None without a threshold or rows.
        size: Mean number of labels in a set; None likewise.
        single: Share of the sets with one label, 0 to 1; None likewise.
        intervals: 95 % Clopper-Pearson interval of the coverage, low and high.
    """

    sets: PredictionSets
    coverage: float | None
    size: float | None
    single: float | None
    intervals: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        """Returns the score in the form of ``evaluation.json``."""
        return asdict(self)


def fit_prediction_sets(logits: Floats, targets: Integers, coverage: float, temperature: float = 1.0) -> PredictionSets:
    """Finds the threshold of prediction sets.

    Args:
        logits: (N, labels) of the validation rows.
        targets: (N,) indices of the true labels, as in ``Targets.arrays``.
        coverage: Wanted coverage, above 0 and below 1.
        temperature: Divisor of the logits.
    """
    logits, targets = labelled(logits, targets)
    rows = len(targets)
    rank = math.floor((rows + 1) * (1 - coverage) + _TOLERANCE)
    if rank < 1:
        return PredictionSets(coverage, None, rows)
    # float32 as in the server.
    own = probabilities("softmax", logits, temperature).astype(np.float32)[np.arange(rows), targets]  # (N,)
    return PredictionSets(coverage, float(np.sort(own)[rank - 1]), rows)


def in_sets(logits: Floats, threshold: float, temperature: float = 1.0) -> NDArray[np.bool_]:
    """Returns which labels are in the set of each text, (N, labels)."""
    found = probabilities("softmax", logits, temperature).astype(np.float32)  # (N, labels)
    inside = found >= np.float32(threshold)
    inside[np.arange(len(found)), found.argmax(axis=1)] = True
    return np.asarray(inside)


def score_prediction_sets(
    sets: PredictionSets, logits: Floats, targets: Integers, temperature: float = 1.0
) -> SetScore:
    """Measures the prediction sets of the labelled rows of a split."""
    logits, targets = labelled(logits, targets)
    if sets.threshold is None or not len(targets):
        return SetScore(sets, None, None, None, {})
    inside = in_sets(logits, sets.threshold, temperature)
    hits, sizes = int(inside[np.arange(len(targets)), targets].sum()), inside.sum(axis=1)
    return SetScore(
        sets,
        hits / len(targets),
        float(sizes.mean()),
        float((sizes == 1).mean()),
        {"coverage": interval(hits, len(targets))},
    )

"""What the numbers of a head mean, by its declared kind: its task, its prediction, its value.

=========== ============== ======================================= ============================
kind        task           numbers of one text, K labels           prediction
=========== ============== ======================================= ============================
softmax     CLASSIFICATION (K,) probabilities that sum to 1        the most probable label
sigmoid     SENTIMENT      (1,) probability of the positive label  one label, by the threshold
multilabel  LABELS         (K,) probabilities, each by itself      labels, by their thresholds
ordinal     SCORE          (K,) probabilities that sum to 1        the median label, and a value
regression  SCORE          (1,) the value                          the value
=========== ============== ======================================= ============================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from .types import Task

TASKS: Final[Mapping[bundle.HeadKind, Task]] = {
    "softmax": Task.CLASSIFICATION,
    "sigmoid": Task.SENTIMENT,
    "multilabel": Task.LABELS,
    "ordinal": Task.SCORE,
    "regression": Task.SCORE,
}


def numbers_of(head: bundle.Head) -> int:
    """Returns how many numbers ``ModelOutput.probabilities`` has for a head."""
    return 1 if head.kind in {"sigmoid", "regression"} else len(head.labels)


def best_first(probabilities: Sequence[float] | NDArray[np.float32]) -> list[int]:
    """Returns the indices of labels, most probable first, equal ones in their order."""
    # Heads have few labels, for which sorting with numpy takes several times as long.
    return sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)


def by_label(head: bundle.Head, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns one probability per label, (..., labels): a sigmoid head has that of its positive label alone.

    Args:
        head: A head with labels.
        probabilities: (..., numbers).
    """
    if head.kind != "sigmoid":
        return probabilities
    return np.concatenate([1 - probabilities, probabilities], axis=-1)


def predicted(head: bundle.Head, probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
    """Returns the index of the label that a softmax, sigmoid or ordinal head predicts: (...).

    Args:
        head: Gives the kind, and the threshold of a sigmoid head.
        probabilities: (..., numbers).
    """
    # float64 as in the bundle: 0.7 in float32 is below the threshold 0.7.
    exact = probabilities.astype(np.float64)
    if head.kind == "ordinal":
        # Rounding cannot leave the last sum below a half.
        return np.asarray((exact.cumsum(axis=-1) >= 0.5).argmax(axis=-1), dtype=np.intp)
    if head.threshold is not None:
        return np.asarray(exact[..., 0] >= head.threshold, dtype=np.intp)
    return np.asarray(exact.argmax(axis=-1), dtype=np.intp)


def confidence(head: bundle.Head, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probability of the label that a softmax, sigmoid or ordinal head predicts: (...).

    Args:
        head: Gives the kind, and the threshold of a sigmoid head.
        probabilities: (..., numbers).
    """
    labels, best = by_label(head, probabilities), predicted(head, probabilities)
    return np.asarray(np.take_along_axis(labels, best[..., None], axis=-1)[..., 0], dtype=np.float32)


def abstains(head: bundle.Head, confidences: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns whether a head that abstains does so, given its confidences: (...)."""
    # NaN, which stands for a text without an answer, is not below it.
    return np.asarray(confidences < np.float32(head.abstains_below or 0))


def prediction_set(head: bundle.Head, probabilities: NDArray[np.float32]) -> list[int]:
    """Returns the labels of one text's prediction set, most probable first; none for a head without such sets.

    Args:
        head: Gives the threshold.
        probabilities: (labels,).
    """
    if head.prediction_sets is None:
        return []
    inside = in_prediction_sets(head, probabilities)
    return [label for label in best_first(probabilities.tolist()) if inside[label]]


def in_prediction_sets(head: bundle.Head, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which labels are in the prediction sets of a softmax head that has them: (..., labels)."""
    threshold = head.prediction_sets.threshold if head.prediction_sets else 0
    best = probabilities.argmax(axis=-1)[..., None]
    inside = probabilities >= np.float32(threshold)
    return np.asarray(inside | (np.arange(probabilities.shape[-1]) == best))


def applying(head: bundle.Head, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which labels of a multilabel head are at or above their thresholds: (..., labels)."""
    thresholds = np.asarray(head.thresholds, dtype=np.float64)  # (labels,)
    return np.asarray(probabilities.astype(np.float64) >= thresholds)


def value_of(head: bundle.Head, numbers: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Returns the value of an ordinal or regression head: (...).

    Args:
        head: Gives the kind, and the values of the labels, whose expectation is the value of an ordinal head.
        numbers: (..., numbers).
    """
    if head.kind == "regression":
        return np.asarray(numbers[..., 0], dtype=np.float32)
    return np.asarray((numbers.astype(np.float64) * np.asarray(head.label_values)).sum(axis=-1), dtype=np.float32)

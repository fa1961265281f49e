"""Metrics of a multilabel head, computed from logits and lists of labels.

::

    logits --answers--> predicted labels, targets --> F1 of each label, micro- and macro-F1
           --average_precisions--> average precision of each label, without a threshold
           --confidences of every label in every row--> Calibration
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import PERCENTILES, LabelScore, resampled_sums
from .probabilities import Bin, Floats, Integers, answers, binary_decisions, calibration, confidences, labelled


@dataclass(frozen=True)
class MultilabelLabelScore(LabelScore):
    """Metrics of one label; an undefined metric is None.

    Attributes:
        average_precision: Area under the label's precision-recall curve, 0 to 1.
        threshold: Minimum probability at which the label is predicted.
    """

    average_precision: float | None = None
    threshold: float = 0.5


@dataclass(frozen=True)
class MultilabelScore:
    """Metrics of a multilabel head on one split, over the labelled rows; without such rows every metric is None.

    Attributes:
        rows: Number of labelled rows, those with an empty list included.
        temperature: Divisor of the logits.
        threshold: Minimum probability of each label.
        micro_f1: F1 of the decisions about every label in every row together, 0 to 1.
        macro_f1: Mean F1 of the labels that occur among the rows, 0 to 1.
        mean_average_precision: Mean average precision of these labels, 0 to 1.
        accuracy: Share of the rows whose whole list is predicted, 0 to 1.
        majority_baseline: Micro-F1 of always predicting the most frequent label alone, 0 to 1.
        nll: Negative log-likelihood of a label's presence or absence, as in ``Calibration``.
        ece: Expected calibration error of these decisions, as in ``Calibration``.
        brier: Brier score of these decisions, as in ``Calibration``.
        intervals: 95 % intervals of micro_f1, macro_f1 and accuracy, low and high; empty if not requested.
        labels: Metrics of each label, in the order of the logits.
        reliability: Reliability diagram of the decisions, as in ``Calibration``.
    """

    rows: int
    temperature: float = 1.0
    threshold: tuple[float, ...] = ()
    kind: str = "multilabel"
    micro_f1: float | None = None
    macro_f1: float | None = None
    mean_average_precision: float | None = None
    accuracy: float | None = None
    majority_baseline: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, MultilabelLabelScore] = field(default_factory=dict)
    reliability: list[Bin] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics in the form of ``evaluation.json``."""
        return asdict(self)


def score_multilabel(
    labels: Sequence[str],
    logits: Floats,
    targets: Integers,
    *,
    temperature: float = 1.0,
    thresholds: Sequence[float],
    seed: int = 0,
    intervals: bool = True,
) -> MultilabelScore:
    """Computes all metrics of one multilabel head.

    Args:
        labels: Names of the labels, in the order of the logits.
        logits: (N, labels).
        targets: (N, labels) 0 or 1, ``UNLABELLED`` for rows without an answer.
        temperature: Divisor of the logits.
        thresholds: (labels,) minimum probability of each label.
        seed: Seed of the resamples.
        intervals: Whether to compute the intervals.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return MultilabelScore(0, temperature, tuple(thresholds))
    predicted = answers("multilabel", logits, temperature, thresholds)  # (N, labels)
    hits, support, answered = (counts.sum(axis=0) for counts in (predicted * targets, targets, predicted))
    precisions = average_precisions(logits, targets)  # (labels,)
    occurs = support > 0
    found = calibration(confidences("sigmoid", *binary_decisions("multilabel", logits, targets), temperature))
    return MultilabelScore(
        rows=len(targets),
        temperature=temperature,
        threshold=tuple(thresholds),
        micro_f1=float(f1_scores(hits.sum(), support.sum(), answered.sum())),
        macro_f1=float(f1_scores(hits, support, answered)[occurs].mean()) if occurs.any() else None,
        mean_average_precision=float(precisions[occurs].mean()) if occurs.any() else None,
        accuracy=float((predicted == targets).all(axis=1).mean()),
        majority_baseline=float(f1_scores(support.max(), support.sum(), len(targets))),
        intervals=_intervals(targets, predicted, seed) if intervals else {},
        labels={
            name: MultilabelLabelScore(
                support=int(support[index]),
                answered=int(answered[index]),
                precision=_share(hits[index], answered[index]),
                recall=_share(hits[index], support[index]),
                f1=_share(2 * hits[index], support[index] + answered[index]),
                average_precision=float(precisions[index]) if occurs[index] else None,
                threshold=float(thresholds[index]),
            )
            for index, name in enumerate(labels)
        },
        **vars(found),
    )


def quick_score_multilabel(logits: Floats, targets: Integers) -> dict[str, float | None]:
    """Computes the metrics that training logs after each epoch, from raw logits, with a threshold of 0.5.

    Args:
        logits: (N, labels).
        targets: (N, labels) 0 or 1, ``UNLABELLED`` for rows without an answer.

    Returns:
        ``micro_f1``, ``mean_average_precision`` and ``nll`` (nats); None where it is undefined.
    """
    logits, targets = labelled(logits, targets)
    if not targets.any():
        return {"micro_f1": None, "mean_average_precision": None, "nll": None}
    predicted = answers("multilabel", logits)
    decisions = confidences("sigmoid", *binary_decisions("multilabel", logits, targets))
    return {
        "micro_f1": float(f1_scores((predicted * targets).sum(), targets.sum(), predicted.sum())),
        "mean_average_precision": float(np.nanmean(average_precisions(logits, targets))),
        "nll": float(decisions.nll.mean()),
    }


def average_precisions(scores: Floats, targets: Integers) -> NDArray[np.float64]:
    """Computes the average precision of each label, (labels,); NaN for a label that no row has.

    As in scikit-learn: the sum of the precisions at each distinct score, weighted by the increase in recall.

    Args:
        scores: (N, labels), higher for rows that more likely have the label.
        targets: (N, labels) 0 or 1.
    """
    found = np.full(targets.shape[1], np.nan)
    for label in np.flatnonzero(targets.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        ends = np.flatnonzero(np.diff(scores[order, label], append=-np.inf))  # last row of each distinct score
        hits = np.cumsum(targets[order, label], dtype=np.int64)[ends]
        found[label] = (hits / (ends + 1) * np.diff(hits, prepend=0)).sum() / hits[-1]
    return found


def f1_scores(hits: Any, support: Any, answered: Any) -> NDArray[np.float64]:
    """Computes F1 from numbers of correct predictions, of true labels and of predictions; 0 without any."""
    return np.asarray(2.0 * hits / np.maximum(support + answered, 1))


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _intervals(targets: Integers, predicted: Integers, seed: int) -> dict[str, list[float]]:
    """Computes percentile bootstrap intervals, as ``metrics`` does."""
    width = targets.shape[1]
    exact = (targets == predicted).all(axis=1)[:, None]
    summands = np.hstack([targets * predicted, targets, predicted, exact]).astype(np.float32)
    sums = resampled_sums(summands, seed)
    hits, support, answered, exact_sums = np.split(sums, [width, 2 * width, 3 * width], axis=1)
    occurs = support > 0
    macro = np.where(occurs, f1_scores(hits, support, answered), 0.0).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    found = {
        "micro_f1": f1_scores(hits.sum(axis=1), support.sum(axis=1), answered.sum(axis=1)),
        "macro_f1": macro,
        "accuracy": exact_sums[:, 0] / len(targets),
    }
    return {name: np.percentile(values, PERCENTILES).tolist() for name, values in found.items()}

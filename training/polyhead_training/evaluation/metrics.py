"""Metrics of one head, computed from logits and labels.

::

    logits --answers--> predictions, targets --> accuracy, F1, confusion --+--> HeadScore
           --confidences--> Calibration -----------------------------------+
                 both, on 1,000 resamples of the rows --> intervals -------+

Metrics of the rows come from scikit-learn. Those of the 1,000 resamples and of the 99 candidate thresholds are
vectorized here, because as many scikit-learn calls take over a hundred times as long. The negative log-likelihood is
computed from log probabilities, because ``sklearn.metrics.log_loss`` clips probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_training.model_types import HeadKind

from .probabilities import BINS, Bin, Confidences, Floats, Integers, answers, calibration, confidences, labelled

_RESAMPLES = 1_000
# Draws in memory at once.
_CHUNK_DRAWS = 2_000_000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class LabelScore:
    """Metrics of one label; an undefined metric is None.

    Attributes:
        support: Rows with this label.
        answered: Rows predicted as this label.
        precision: Share of the predictions of this label that are correct, 0 to 1.
        recall: Share of the rows with this label that are predicted correctly, 0 to 1.
        f1: Harmonic mean of precision and recall, 0 to 1.
    """

    support: int
    answered: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class HeadScore:
    """Metrics of one head on one split, over the rows with a label for it; without such rows every metric is None.

    Attributes:
        rows: Number of labelled rows.
        temperature: Divisor of the logits.
        threshold: Minimum probability at which a sigmoid head predicts its second label; None for a softmax head.
        accuracy: Share of correct predictions, 0 to 1.
        majority_baseline: Accuracy of always predicting the most frequent label, 0 to 1.
        macro_f1: Mean F1 of the labels that occur among the rows, 0 to 1.
        balanced_accuracy: Mean recall of these labels, 0 to 1.
        nll: Negative log-likelihood, as in ``Calibration``.
        ece: Expected calibration error, as in ``Calibration``.
        brier: Brier score, as in ``Calibration``.
        intervals: 95 % intervals of accuracy, macro_f1, balanced_accuracy, ece and brier, low and high: percentiles
            over 1,000 resamples of the rows; empty if they were not requested. The ECE is biased upwards, more so in a
            resample, so its interval may lie above the ECE itself.
        labels: Metrics of each label, in the order of the logits.
        confusion: Rows by true label (outer) and predicted label (inner).
        reliability: Reliability diagram, as in ``Calibration``.
    """

    rows: int
    temperature: float = 1.0
    threshold: float | None = None
    accuracy: float | None = None
    majority_baseline: float | None = None
    macro_f1: float | None = None
    balanced_accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, LabelScore] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    reliability: list[Bin] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics in the form of ``evaluation.json``."""
        return asdict(self)


def score(
    kind: HeadKind,
    labels: Sequence[str],
    logits: Floats,
    targets: Integers,
    *,
    temperature: float = 1.0,
    threshold: float = 0.5,
    seed: int = 0,
    intervals: bool = True,
) -> HeadScore:
    """Computes all metrics of one head.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        labels: Names of the labels, in the order of the logits.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` for rows without a label.
        temperature: Divisor of the logits.
        threshold: Minimum probability at which a sigmoid head predicts its second label; a softmax head ignores it.
        seed: Seed of the resamples.
        intervals: Whether to compute the intervals, which takes much longer than the metrics.
    """
    used = threshold if kind == "sigmoid" else None
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return HeadScore(0, temperature, used)
    from sklearn import metrics  # takes seconds to import

    predicted = answers(kind, logits, temperature, threshold)  # (N,)
    found = confidences(kind, logits, targets, temperature)
    present, every = np.unique(targets), np.arange(len(labels))
    confusion = metrics.confusion_matrix(targets, predicted, labels=every)  # (true, predicted)
    support, answered = confusion.sum(axis=1), confusion.sum(axis=0)  # (labels,)
    by_label = metrics.precision_recall_fscore_support(targets, predicted, labels=every, zero_division=np.nan)
    return HeadScore(
        rows=len(targets),
        temperature=temperature,
        threshold=used,
        accuracy=float(metrics.accuracy_score(targets, predicted)),
        majority_baseline=float(support.max() / len(targets)),
        macro_f1=float(metrics.f1_score(targets, predicted, labels=present, average="macro", zero_division=0)),
        balanced_accuracy=float(metrics.recall_score(targets, predicted, labels=present, average="macro")),
        intervals=_intervals(targets, predicted, found, len(labels), seed) if intervals else {},
        labels={
            name: LabelScore(
                int(support[index]), int(answered[index]), *(defined(by_label[n][index]) for n in range(3))
            )
            for index, name in enumerate(labels)
        },
        confusion=confusion.tolist(),
        **vars(calibration(found)),
    )


def quick_score(kind: HeadKind, logits: Floats, targets: Integers) -> dict[str, float | None]:
    """Computes the metrics that training logs after each epoch, from raw logits.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` for rows without a label.

    Returns:
        ``accuracy``, ``macro_f1`` and ``nll`` (nats); all None without labelled rows.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return {"accuracy": None, "macro_f1": None, "nll": None}
    predicted = answers(kind, logits)  # (N,)
    return {
        "accuracy": float((predicted == targets).mean()),
        "macro_f1": macro_f1(targets, predicted),
        "nll": float(confidences(kind, logits, targets).nll.mean()),
    }


def macro_f1(targets: Integers, predicted: Integers) -> float:
    """Computes the mean F1, 0 to 1, over the labels that occur among (N,) targets, N > 0."""
    labels = int(max(targets.max(), predicted.max())) + 1
    correct, support, answered = (
        np.bincount(found, minlength=labels) for found in (targets[predicted == targets], targets, predicted)
    )
    return float(_macro_f1(correct, support, answered))


def _macro_f1(
    correct: Floats | Integers, support: Floats | Integers, answered: Floats | Integers
) -> NDArray[np.float64]:
    """Computes macro-F1 from (..., labels) counts of correct predictions, rows and predictions."""
    occurs = support > 0
    f1 = np.where(occurs, 2.0 * correct / np.maximum(support + answered, 1), 0.0)
    return np.asarray(f1.sum(axis=-1) / occurs.sum(axis=-1))


def _balanced_accuracy(correct: Floats | Integers, support: Floats | Integers) -> NDArray[np.float64]:
    return np.asarray((correct / np.maximum(support, 1)).sum(axis=-1) / (support > 0).sum(axis=-1))


def defined(value: Any) -> float | None:
    """Returns a number as it is written to JSON: None in place of NaN."""
    return None if np.isnan(value) else float(value)


def _intervals(
    targets: Integers, predicted: Integers, found: Confidences, labels: int, seed: int
) -> dict[str, list[float]]:
    """Computes percentile bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).

    Every metric is a function of sums over rows. A resample is a vector of how often it contains each row, so one
    matrix product yields the sums of many resamples.
    """
    one_hot, one_bin = np.eye(labels, dtype=np.float32), np.eye(BINS, dtype=np.float32)
    gap = (found.confidence - found.correct)[:, None] * one_bin[found.bin]  # (N, bins)
    hits = (targets == predicted)[:, None]
    summands = np.hstack(
        [one_hot[targets] * hits, one_hot[targets], one_hot[predicted], gap, found.brier[:, None]]
    ).astype(np.float32)
    correct, support, answered, gaps, brier = np.split(
        resampled_sums(summands, seed), [labels, 2 * labels, 3 * labels, 3 * labels + BINS], axis=1
    )
    metrics = {
        "accuracy": correct.sum(axis=1) / len(targets),
        "macro_f1": _macro_f1(correct, support, answered),
        "balanced_accuracy": _balanced_accuracy(correct, support),
        "ece": np.abs(gaps).sum(axis=1) / len(targets),
        "brier": brier[:, 0] / len(targets),
    }
    return {name: np.percentile(values, PERCENTILES).tolist() for name, values in metrics.items()}


def resampled_sums(summands: Floats, seed: int) -> NDArray[np.float64]:
    """Computes the sums of (rows, S) summands over the rows of each resample, (resamples, S)."""
    return np.concatenate([drawn @ summands for drawn in resamples(len(summands), seed)], dtype=np.float64)


def resamples(rows: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yields how often each resample contains each row, (some resamples, rows) at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, min(_RESAMPLES, _CHUNK_DRAWS // rows))
    for start in range(0, _RESAMPLES, size):
        count = min(size, _RESAMPLES - start)
        drawn = rng.integers(0, rows, (count, rows)) + np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float32)

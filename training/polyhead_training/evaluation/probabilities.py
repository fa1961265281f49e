"""Probabilities and predictions from logits, and the calibration of the probabilities.

::

    logits --log_probabilities--> --confidences--> per-row values --calibration--> NLL, ECE, Brier, reliability
           --answers--> labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from polyhead_training.data.labels import UNLABELLED
from polyhead_training.model_types import HeadKind

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
# True answers for one head, as in data.targets.Targets.
Answers = NDArray[Any]
# Minimum probability of the second label of a sigmoid head, or of each label of a multilabel head.
Threshold = float | Sequence[float]

# Number of equal confidence ranges in the reliability diagram and the ECE.
BINS = 15
# Probability of a label of an ordinal head in logarithms: labels between two others may have none at all.
_MIN_PROBABILITY = 1e-12


class Confidences(NamedTuple):
    """Confidence of a head in each of N labelled rows, compared with the true labels.

    Attributes:
        nll: (N,) negative log-likelihood of the true label, in nats.
        brier: (N,) squared distance between the probabilities and the one-hot true label.
        confidence: (N,) probability of the most probable label.
        correct: (N,) whether the most probable label is the true one.
        bin: (N,) index of the confidence's bin, from 0.
    """

    nll: Floats
    brier: Floats
    confidence: Floats
    correct: NDArray[np.bool_]
    bin: Integers


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence lies in one of 15 equal ranges.

    Attributes:
        count: Number of rows.
        confidence: Mean probability of the most probable label, 0 to 1; None without rows.
        accuracy: Share of the rows whose most probable label is the true one, 0 to 1; None without rows.
    """

    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of a head's probabilities. It concerns the most probable label, independent of the threshold.

    Attributes:
        nll: Mean negative log-likelihood of the true label, in nats.
        ece: Expected calibration error, 0 to 1: the mean difference between confidence and accuracy over 15 bins of
            equal width, weighted by rows (Guo et al., arXiv 1706.04599, equation 3).
        brier: Mean squared distance between the probabilities and the true label. Softmax head: summed over all
            labels, 0 to 2. Sigmoid head: of the second label only, 0 to 1.
        reliability: The bins, in the order of confidence.
    """

    nll: float
    ece: float
    brier: float
    reliability: list[Bin]


def is_labelled(targets: Answers) -> NDArray[np.bool_]:
    """Returns whether each of N rows has an answer for a head, (N,); ``targets`` are those of ``Targets.arrays``."""
    values = np.asarray(targets)
    if values.dtype.kind == "f":
        return np.asarray(~np.isnan(values))
    return np.asarray((values if values.ndim == 1 else values[:, 0]) != UNLABELLED)


def labelled(logits: Floats, targets: Answers) -> tuple[Floats, NDArray[Any]]:
    """Selects the logits and targets of the rows with an answer."""
    chosen = is_labelled(targets)  # (N,)
    return np.asarray(logits)[chosen], np.asarray(targets)[chosen]


def label_logits(kind: HeadKind, logits: Floats) -> NDArray[np.float64]:
    """Returns one logit per label, (N, labels); those of a sigmoid head are 0 and its only logit."""
    values = np.asarray(logits, dtype=np.float64)
    return np.hstack([np.zeros_like(values), values]) if kind == "sigmoid" else values


def log_probabilities(kind: HeadKind, logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Computes the logarithm of each label's probability, (N, labels).

    Args:
        kind: ``softmax``, ``sigmoid`` or ``ordinal``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head, (N, labels - 1) for an ordinal head.
        temperature: Divisor of the logits.
    """
    if kind == "ordinal":
        return np.asarray(np.log(np.maximum(probabilities(kind, logits, temperature), _MIN_PROBABILITY)))
    return np.asarray(special.log_softmax(label_logits(kind, logits) / temperature, axis=1))


def probabilities(kind: HeadKind, logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Computes the probabilities that the server returns, in the shape of the logits.

    Args:
        kind: Kind of the head.
        logits: (..., outputs).
        temperature: Divisor of the logits.

    Returns:
        (..., labels) probabilities of the labels; those of a multilabel head are independent of each other, others sum
        to 1. Sigmoid head: (..., 1), the probability of its second label. Regression head: (..., 1), the value.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if kind == "softmax":
        return np.asarray(special.softmax(scaled, axis=-1))
    if kind == "ordinal":
        above = np.minimum.accumulate(special.expit(scaled), axis=-1)  # (..., labels - 1), P(answer is above label j)
        ends = [(0, 0)] * (above.ndim - 1)
        return np.asarray(-np.diff(np.pad(above, [*ends, (0, 1)]), axis=-1, prepend=1.0))
    return scaled if kind == "regression" else np.asarray(special.expit(scaled))


def answers(kind: HeadKind, logits: Floats, temperature: float = 1.0, threshold: Threshold = 0.5) -> NDArray[Any]:
    """Predicts the answer for each of N rows.

    Returns:
        Softmax head: (N,) index of the most probable label. Sigmoid head: (N,) index, by threshold. Multilabel head:
        (N, labels), 1 for each label whose probability is at least its threshold. Ordinal head: (N,) index of the
        median, the first label at or below which the answer lies with a probability of 0.5. Regression head: (N,)
        value.
    """
    if kind == "softmax":
        return np.asarray(logits.argmax(axis=1))
    if kind == "ordinal":
        # A probability above 0.5 is a logit above 0 at every temperature.
        return np.asarray((np.minimum.accumulate(logits, axis=1) > 0).sum(axis=1))
    if kind == "regression":
        return np.asarray(logits[:, 0], dtype=np.float64)
    # Compared as logits: a threshold of 0.5 is a logit of exactly 0 at every temperature.
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    passed = np.asarray(scaled >= special.logit(np.asarray(threshold)), dtype=np.int64)  # (N, outputs)
    return passed if kind == "multilabel" else passed[:, 0]


def expected_values(logits: Floats, values: Sequence[float], temperature: float = 1.0) -> NDArray[np.float64]:
    """Computes the expected value of an ordinal head in each of N rows, (N,), from the values of its labels."""
    return np.asarray(probabilities("ordinal", logits, temperature) @ np.asarray(values))


def binary_decisions(kind: HeadKind, logits: Floats, targets: Integers) -> tuple[Floats, Integers]:
    """Returns the yes-or-no decisions that an ordinal or a multilabel head makes, as those of one sigmoid head.

    Args:
        kind: ``multilabel``, whose decisions are its labels, or ``ordinal``, whose decisions are "above label j".
        logits: (N, outputs).
        targets: True answers for the N rows.

    Returns:
        Logits, (N * outputs, 1), and targets, (N * outputs,), 0 or 1.
    """
    places = np.arange(logits.shape[1])
    decisions = targets[:, None] > places if kind == "ordinal" else targets  # (N, outputs)
    return logits.reshape(-1, 1), decisions.astype(np.int64).ravel()


def confidences(kind: HeadKind, logits: Floats, targets: Integers, temperature: float = 1.0) -> Confidences:
    """Compares the probabilities of N labelled rows with their (N,) targets."""
    logarithms = log_probabilities(kind, logits, temperature)  # (N, labels)
    values = np.exp(logarithms)
    rows, top = np.arange(len(targets)), logarithms.argmax(axis=1)
    deviations = values.copy()
    deviations[rows, targets] -= 1.0
    brier = (deviations**2).sum(axis=1)  # (N,)
    confidence = values[rows, top]
    return Confidences(
        nll=-logarithms[rows, targets],
        # Both labels of a sigmoid head deviate by the same amount.
        brier=brier / 2.0 if kind == "sigmoid" else brier,
        confidence=confidence,
        correct=top == targets,
        # The bins are closed on the right, as in the paper.
        bin=np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1),
    )


def calibration(found: Confidences) -> Calibration:
    """Summarizes the calibration of N > 0 rows."""
    counts = np.bincount(found.bin, minlength=BINS)  # (bins,)
    confidence_sums = np.bincount(found.bin, found.confidence, BINS)
    correct_sums = np.bincount(found.bin, found.correct, BINS)
    bins = [
        Bin(int(count), float(confidence / count), float(correct / count)) if count else Bin(0, None, None)
        for count, confidence, correct in zip(counts, confidence_sums, correct_sums, strict=True)
    ]
    return Calibration(
        nll=float(found.nll.mean()),
        ece=float(np.abs(confidence_sums - correct_sums).sum() / len(found.bin)),
        brier=float(found.brier.mean()),
        reliability=bins,
    )

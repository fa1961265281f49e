"""Calibration on the validation rows after training: one temperature per head, one threshold per binary decision."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from polyhead_training.model_types import HeadKind

from .metrics import macro_f1
from .probabilities import Floats, Integers, answers, binary_decisions, label_logits, labelled, log_probabilities

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_THRESHOLDS = [percent / 100 for percent in range(1, 100)]


def fit_temperature(kind: HeadKind, logits: Floats, targets: Integers, *, balanced: bool = False) -> float:
    """Fits the temperature that maximizes the likelihood of the true labels.

    Temperature scaling (Guo et al., arXiv 1706.04599, section 4.2) changes the probabilities, not the most probable
    label. The call minimizes the total negative log-likelihood plus b - ln b over b = 1 / temperature. The additional
    term weighs about as much as one row and has its minimum at 1: a few rows that are all correct do not make the head
    fully confident, and many rows outweigh it.

    The temperature of a multilabel or an ordinal head is that of its binary decisions.

    Args:
        kind: Kind of the head.
        logits: (N, outputs).
        targets: True answers for the N rows, as in ``Targets.arrays``.
        balanced: Whether each label counts equally, whatever its number of rows. The logits of a head that was trained
            with the logit-adjusted loss are those of equally frequent labels.

    Returns:
        The temperature, 0.05 to 20; 1 for a regression head, without labelled rows, and if a logit is not finite.
    """
    logits, targets = labelled(logits, targets)
    if kind == "regression" or not len(targets) or not np.isfinite(logits).all():
        return 1.0
    if kind in ("multilabel", "ordinal"):
        return fit_temperature("sigmoid", *binary_decisions(kind, logits, targets))
    weights = _balanced_weights(targets) if balanced else np.ones(len(targets))

    def slope(log_inverse: float) -> float:
        return _slope(kind, logits, targets, weights, math.exp(log_inverse))

    # The objective is convex in b, so its slope changes sign at most once.
    low, high = -math.log(_MAX_TEMPERATURE), -math.log(_MIN_TEMPERATURE)
    if slope(low) >= 0:
        return _MAX_TEMPERATURE
    if slope(high) <= 0:
        return _MIN_TEMPERATURE
    return math.exp(-optimize.brentq(slope, low, high, xtol=1e-12))


def best_threshold(logits: Floats, targets: Integers, temperature: float = 1.0) -> float:
    """Finds the threshold of a sigmoid head with the highest macro-F1.

    Args:
        logits: (N, 1).
        targets: (N,) 0 or 1, ``UNLABELLED`` for rows without a label.
        temperature: Divisor of the logits.

    Returns:
        One of 0.01, 0.02, ..., 0.99, of equally good ones the nearest to 0.5; 0.5 without labelled rows.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return 0.5

    def quality(threshold: float) -> tuple[float, float]:
        return macro_f1(targets, answers("sigmoid", logits, temperature, threshold)), -abs(threshold - 0.5)

    return max(_THRESHOLDS, key=quality)


def best_thresholds(logits: Floats, targets: Integers, temperature: float = 1.0) -> list[float]:
    """Finds the threshold of each label of a multilabel head with the highest F1 of the label.

    Args:
        logits: (N, labels).
        targets: (N, labels) 0 or 1, ``UNLABELLED`` for rows without an answer.
        temperature: Divisor of the logits.

    Returns:
        For each label one of 0.01, 0.02, ..., 0.99, of equally good ones the nearest to 0.5; 0.5 without rows with the
        label.
    """
    logits, targets = labelled(logits, targets)
    order = sorted(_THRESHOLDS, key=lambda threshold: abs(threshold - 0.5))
    present = targets.sum(axis=0)  # (labels,)
    scores = []
    for threshold in order:
        predicted = answers("multilabel", logits, temperature, threshold)  # (N, labels)
        found = (predicted * targets).sum(axis=0)
        scores.append(2.0 * found / np.maximum(present + predicted.sum(axis=0), 1))
    best = np.array(scores).argmax(axis=0)  # (labels,) the first of equal ones is the nearest to 0.5
    return [order[number] if count else 0.5 for number, count in zip(best, present, strict=True)]


def _balanced_weights(targets: Integers) -> NDArray[np.float64]:
    """Returns a weight for each of N > 0 rows, equal in total for each label that occurs; their mean is 1."""
    counts = np.bincount(targets)
    return np.asarray(len(targets) / ((counts > 0).sum() * counts[targets]))


def _slope(kind: HeadKind, logits: Floats, targets: Integers, weights: NDArray[np.float64], inverse: float) -> float:
    """Returns the derivative of ``fit_temperature``'s objective by b = 1 / temperature."""
    probabilities = np.exp(log_probabilities(kind, logits, 1.0 / inverse))  # (N, labels)
    logits = label_logits(kind, logits)
    expected = (probabilities * logits).sum(axis=1)  # (N,)
    slopes = expected - logits[np.arange(len(targets)), targets]  # (N,)
    return float((weights * slopes).sum()) + 1.0 - 1.0 / inverse

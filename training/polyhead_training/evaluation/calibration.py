"""Calibration on the validation rows after training: one temperature per head, one threshold per sigmoid head."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize

from polyhead_training.model_types import HeadKind

from .metrics import macro_f1
from .probabilities import Floats, Integers, answers, label_logits, labelled, log_probabilities

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_THRESHOLDS = [percent / 100 for percent in range(1, 100)]


def fit_temperature(kind: HeadKind, logits: Floats, targets: Integers) -> float:
    """Fits the temperature that maximizes the likelihood of the true labels.

    Temperature scaling (Guo et al., arXiv 1706.04599, section 4.2) changes the probabilities, not the most probable
    label. The call minimizes the total negative log-likelihood plus b - ln b over b = 1 / temperature. The additional
    term weighs about as much as one row and has its minimum at 1: a few rows that are all correct do not make the head
    fully confident, and many rows outweigh it.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` for rows without a label.

    Returns:
        The temperature, 0.05 to 20; 1 without labelled rows, and if a logit is not finite.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets) or not np.isfinite(logits).all():
        return 1.0

    def slope(log_inverse: float) -> float:
        return _slope(kind, logits, targets, math.exp(log_inverse))

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


def _slope(kind: HeadKind, logits: Floats, targets: Integers, inverse: float) -> float:
    """Returns the derivative of ``fit_temperature``'s objective by b = 1 / temperature."""
    probabilities = np.exp(log_probabilities(kind, logits, 1.0 / inverse))  # (N, labels)
    logits = label_logits(kind, logits)
    expected = (probabilities * logits).sum(axis=1)  # (N,)
    return float((expected - logits[np.arange(len(targets)), targets]).sum()) + 1.0 - 1.0 / inverse

"""What is fitted on validation after training: one temperature for each head, one threshold for a sigmoid head."""

from __future__ import annotations

import math

import numpy as np

from polyhead_training.model import HeadKind

from .metrics import macro_f1
from .probabilities import Floats, Integers, answers, labelled, log_probabilities, of_all_labels

_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.05, 20.0
# Halvings of the range; 40 leave less than a millionth of a millionth of it.
_HALVINGS = 40
_THRESHOLDS = [percent / 100 for percent in range(1, 100)]


def fit_temperature(kind: HeadKind, logits: Floats, targets: Integers) -> float:
    """The temperature under which the true labels are likeliest (Guo et al., arXiv 1706.04599, section 4.2).

    It changes probabilities, not which label is the likeliest. The total negative log-likelihood plus b - ln b is
    minimised over b = 1 / temperature. That term counts about as much as one row and is smallest at 1: a few rows that
    all were answered rightly do not make the head certain of everything, many rows outvote it.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` where there is none.

    Returns:
        The temperature, 0.05 to 20; 1 without labelled rows.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return 1.0
    low, high = 1.0 / _HIGHEST_TEMPERATURE, 1.0 / _LOWEST_TEMPERATURE
    for _ in range(_HALVINGS):
        # What is minimised is convex in b, so its slope changes sign once.
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _slope(kind, logits, targets, middle) > 0 else (middle, high)
    return 1.0 / middle


def best_threshold(logits: Floats, targets: Integers, temperature: float = 1.0) -> float:
    """The probability from which on a sigmoid head's second label gives the highest macro-F1.

    Args:
        logits: (N, 1).
        targets: (N,) 0 or 1, ``UNLABELLED`` where there is none.
        temperature: What the logits are divided by.

    Returns:
        One of 0.01, 0.02, ..., 0.99: of equally good ones the nearest to 0.5; 0.5 without labelled rows.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return 0.5

    def worth(threshold: float) -> tuple[float, float]:
        return macro_f1(targets, answers("sigmoid", logits, temperature, threshold)), -abs(threshold - 0.5)

    return max(_THRESHOLDS, key=worth)


def _slope(kind: HeadKind, logits: Floats, targets: Integers, inverse: float) -> float:
    """Derivative by 1 / temperature of what ``fit_temperature`` minimises."""
    probabilities = np.exp(log_probabilities(kind, logits, 1.0 / inverse))  # (N, labels)
    logits = of_all_labels(kind, logits)
    expected = (probabilities * logits).sum(axis=1)  # (N,)
    return float((expected - logits[np.arange(len(targets)), targets]).sum()) + 1.0 - 1.0 / inverse

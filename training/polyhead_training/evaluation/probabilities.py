"""Logits to probabilities and answers, and whether the probabilities mean what they say.

::

    logits --log_probabilities--> --certainties--> figures of each row --calibration--> NLL, ECE, Brier, reliability
           --answers--> labels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_training.loop.loss import UNLABELLED
from polyhead_training.model import HeadKind

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

BINS = 15


class Certainties(NamedTuple):
    """How sure a head was of each of N rows, and how rightly.

    Attributes:
        nll: (N,) negative log-likelihood of the true label, in nats.
        brier: (N,) squared distance of the probabilities from the truth.
        confidence: (N,) probability of the likeliest label.
        right: (N,) whether that is the true one.
        place: (N,) number of the confidence's bin, from 0.
    """

    nll: Floats
    brier: Floats
    confidence: Floats
    right: NDArray[np.bool_]
    place: Integers


@dataclass(frozen=True)
class Bin:
    """The rows whose likeliest label has a probability in one of 15 equal ranges.

    Attributes:
        count: Rows.
        confidence: Mean probability of the likeliest label, 0 to 1; None without rows.
        accuracy: Share of the rows of which it is the true one, 0 to 1; None without rows.
    """

    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say. All of it is about the likeliest label, whatever the threshold.

    Attributes:
        nll: Mean negative log-likelihood of the true label, in nats.
        ece: Expected calibration error, 0 to 1: the mean distance of confidence and accuracy over 15 bins of equal
            width, weighted by rows (Guo et al., arXiv 1706.04599, equation 3).
        brier: Mean squared distance of the probabilities from the truth. Softmax head: summed over all labels, 0 to 2.
            Sigmoid head: of the second label alone, 0 to 1.
        reliability: The bins, from the lowest confidence to the highest.
    """

    nll: float
    ece: float
    brier: float
    reliability: list[Bin]


def labelled(logits: Floats, targets: Integers) -> tuple[Floats, Integers]:
    """The logits and targets of the rows that have a label."""
    chosen = np.asarray(targets) != UNLABELLED  # (N,)
    return np.asarray(logits)[chosen], np.asarray(targets)[chosen]


def of_all_labels(kind: HeadKind, logits: Floats) -> NDArray[np.float64]:
    """A logit for each label, (N, labels): those of a softmax head, 0 and the only one of a sigmoid head."""
    values = np.asarray(logits, dtype=np.float64)
    return np.hstack([np.zeros_like(values), values]) if kind == "sigmoid" else values


def log_probabilities(kind: HeadKind, logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Logarithm of each label's probability, (N, labels).

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        temperature: What the logits are divided by.
    """
    values = of_all_labels(kind, logits) / temperature
    values = values - values.max(axis=1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))


def answers(kind: HeadKind, logits: Floats, temperature: float = 1.0, threshold: float = 0.5) -> Integers:
    """Index of the label that each row gets, (N,): the likeliest, or by the threshold for a sigmoid head."""
    if kind == "softmax":
        return np.asarray(logits.argmax(axis=1))
    # On logits: a threshold of one half is a logit of exactly 0 at every temperature.
    scaled = np.asarray(logits[:, 0], dtype=np.float64) / temperature
    return (scaled >= math.log(threshold / (1.0 - threshold))).astype(np.int64)


def certainties(kind: HeadKind, logits: Floats, targets: Integers, temperature: float = 1.0) -> Certainties:
    """How sure a head was of each of N labelled rows; arguments as for ``log_probabilities``, targets (N,)."""
    logarithms = log_probabilities(kind, logits, temperature)  # (N, labels)
    probabilities = np.exp(logarithms)
    rows, top = np.arange(len(targets)), logarithms.argmax(axis=1)
    missed = probabilities.copy()
    missed[rows, targets] -= 1.0
    brier = (missed**2).sum(axis=1)  # (N,)
    confidence = probabilities[rows, top]
    return Certainties(
        nll=-logarithms[rows, targets],
        # Both labels of a sigmoid head miss by the same.
        brier=brier / 2.0 if kind == "sigmoid" else brier,
        confidence=confidence,
        right=top == targets,
        # The bins are closed on the right, as in the paper.
        place=np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1),
    )


def calibration(found: Certainties) -> Calibration:
    """Whether the probabilities of N > 0 rows mean what they say."""
    counts = np.bincount(found.place, minlength=BINS)  # (bins,)
    confidences = np.bincount(found.place, found.confidence, BINS)
    rights = np.bincount(found.place, found.right, BINS)
    bins = [
        Bin(int(count), float(confidence / count), float(right / count)) if count else Bin(0, None, None)
        for count, confidence, right in zip(counts, confidences, rights, strict=True)
    ]
    return Calibration(
        nll=float(found.nll.mean()),
        ece=float(np.abs(confidences - rights).sum() / len(found.place)),
        brier=float(found.brier.mean()),
        reliability=bins,
    )

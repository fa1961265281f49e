"""How well one head did on some rows: arithmetic on logits and labels, without a model.

::

    logits --answers--> answers, targets --> accuracy, F1, confusion --+--> HeadScore
           --certainties--> Calibration -------------------------------+
                 both, of 1,000 resamples of the rows --> intervals ---+
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_training.model import HeadKind

from .probabilities import (
    BINS,
    Bin,
    Certainties,
    Floats,
    Integers,
    answers,
    calibration,
    certainties,
    labelled,
)

_RESAMPLES = 1_000
# Draws that are held at once.
_CHUNK = 2_000_000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class LabelScore:
    """How one label and the answers agree; a figure without rows to count is None.

    Attributes:
        support: Rows that have the label.
        answered: Rows that got it as an answer.
        precision: Share of the answers that are right, 0 to 1.
        recall: Share of the label's rows that got it, 0 to 1.
        f1: Harmonic mean of the two, 0 to 1.
    """

    support: int
    answered: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class HeadScore:
    """How one head did on one split, over the rows that have a label for it; without such rows all figures are None.

    Attributes:
        rows: Rows with a label.
        temperature: What the logits were divided by.
        threshold: Probability from which on a sigmoid head answered its second label; None for a softmax head.
        accuracy: Share of right answers, 0 to 1.
        majority_baseline: Share that the commonest label alone would get right, 0 to 1.
        macro_f1: Mean F1 of the labels that occur among the rows, 0 to 1.
        balanced_accuracy: Mean recall of these labels, 0 to 1.
        nll: As in ``Calibration``, like the next two.
        ece: Expected calibration error.
        brier: Brier score.
        intervals: 95 % intervals of accuracy, macro_f1, balanced_accuracy, ece and brier, low and high: percentiles of
            1,000 resamples of the rows. An ECE grows as rows get fewer, and does so in a resample: its interval may
            lie above the figure.
        labels: The score of each label, in the order of the logits.
        confusion: Rows by true label (outer) and answer (inner).
        reliability: As in ``Calibration``.
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
        """The score as ``evaluation.json`` has it."""
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
) -> HeadScore:
    """Everything about one head on some rows.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        labels: Names of the labels, in the order of the logits.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` where there is none.
        temperature: What the logits are divided by.
        threshold: Probability from which on a sigmoid head answers its second label; a softmax head has none.
        seed: Seed of the resamples.
    """
    used = threshold if kind == "sigmoid" else None
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return HeadScore(0, temperature, used)
    answered = answers(kind, logits, temperature, threshold)  # (N,)
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)  # (true, answered)
    np.add.at(confusion, (targets, answered), 1)
    hits, true, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)  # (labels,) each
    sure = certainties(kind, logits, targets, temperature)
    return HeadScore(
        rows=len(targets),
        temperature=temperature,
        threshold=used,
        accuracy=float(hits.sum() / len(targets)),
        majority_baseline=float(true.max() / len(targets)),
        macro_f1=float(_macro_f1(hits, true, given)),
        balanced_accuracy=float(_balanced_accuracy(hits, true)),
        intervals=_intervals(targets, answered, sure, len(labels), seed),
        labels={name: _label_score(*map(int, found)) for name, *found in zip(labels, hits, true, given, strict=True)},
        confusion=confusion.tolist(),
        **vars(calibration(sure)),
    )


def quick_score(kind: HeadKind, logits: Floats, targets: Integers) -> dict[str, float | None]:
    """Accuracy, macro-F1 and negative log-likelihood (nats) of raw logits, for a look after an epoch.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        targets: (N,) indices of the true labels, ``UNLABELLED`` where there is none.

    Returns:
        ``accuracy``, ``macro_f1`` and ``nll``; all None without labelled rows.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return {"accuracy": None, "macro_f1": None, "nll": None}
    answered = answers(kind, logits)  # (N,)
    return {
        "accuracy": float((answered == targets).mean()),
        "macro_f1": macro_f1(targets, answered),
        "nll": float(certainties(kind, logits, targets).nll.mean()),
    }


def macro_f1(targets: Integers, answered: Integers) -> float:
    """Mean F1, 0 to 1, over the labels that occur among (N,) targets, N > 0, for as many answers."""
    labels = int(max(targets.max(), answered.max())) + 1
    hits, true, given = (
        np.bincount(found, minlength=labels) for found in (targets[answered == targets], targets, answered)
    )
    return float(_macro_f1(hits, true, given))


def _macro_f1(hits: Floats | Integers, true: Floats | Integers, given: Floats | Integers) -> NDArray[np.float64]:
    """From (..., labels) counts of right answers, rows and answers."""
    occurs = true > 0
    f1 = np.where(occurs, 2.0 * hits / np.maximum(true + given, 1), 0.0)
    return np.asarray(f1.sum(axis=-1) / occurs.sum(axis=-1))


def _balanced_accuracy(hits: Floats | Integers, true: Floats | Integers) -> NDArray[np.float64]:
    return np.asarray((hits / np.maximum(true, 1)).sum(axis=-1) / (true > 0).sum(axis=-1))


def _label_score(hits: int, support: int, answered: int) -> LabelScore:
    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return LabelScore(
        support, answered, share(hits, answered), share(hits, support), share(2 * hits, support + answered)
    )


def _intervals(
    targets: Integers, answered: Integers, sure: Certainties, labels: int, seed: int
) -> dict[str, list[float]]:
    """Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3).

    Every measure is made of sums over rows, so a resample is a vector of how often each row was drawn, and the sums of
    all resamples are one product of matrices.
    """
    one_hot, one_bin = np.eye(labels, dtype=np.float32), np.eye(BINS, dtype=np.float32)
    gap = (sure.confidence - sure.right)[:, None] * one_bin[sure.place]  # (N, bins)
    right = (targets == answered)[:, None]
    summands = np.hstack(
        [one_hot[targets] * right, one_hot[targets], one_hot[answered], gap, sure.brier[:, None]]
    ).astype(np.float32)
    products = [drawn @ summands for drawn in _resamples(len(targets), seed)]
    sums = np.concatenate(products, dtype=np.float64)  # (resamples, summands)
    hits, true, given, gaps, brier = np.split(sums, [labels, 2 * labels, 3 * labels, 3 * labels + BINS], axis=1)
    measures = {
        "accuracy": hits.sum(axis=1) / len(targets),
        "macro_f1": _macro_f1(hits, true, given),
        "balanced_accuracy": _balanced_accuracy(hits, true),
        "ece": np.abs(gaps).sum(axis=1) / len(targets),
        "brier": brier[:, 0] / len(targets),
    }
    return {name: np.percentile(values, _PERCENTILES).tolist() for name, values in measures.items()}


def _resamples(rows: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each row is in each resample, (some resamples, rows) at a time."""
    chooser = np.random.default_rng(seed)
    size = max(1, min(_RESAMPLES, _CHUNK // rows))
    for start in range(0, _RESAMPLES, size):
        count = min(size, _RESAMPLES - start)
        drawn = chooser.integers(0, rows, (count, rows)) + np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float32)

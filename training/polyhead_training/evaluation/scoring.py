"""Metrics of a head of any kind."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from polyhead_training.model_types import SELECTION, HeadKind

from . import metrics
from .metrics import HeadScore
from .multilabel import MultilabelScore, quick_score_multilabel, score_multilabel
from .numbers import (
    OrdinalScore,
    RegressionScore,
    quick_score_ordinal,
    quick_score_regression,
    score_ordinal,
    score_regression,
)
from .probabilities import Answers, Floats, Threshold

Score: TypeAlias = HeadScore | MultilabelScore | OrdinalScore | RegressionScore


def score(
    kind: HeadKind,
    labels: Sequence[str],
    logits: Floats,
    targets: Answers,
    *,
    temperature: float = 1.0,
    threshold: Threshold = 0.5,
    seed: int = 0,
    intervals: bool = True,
) -> Score:
    """Computes all metrics of one head.

    Args:
        kind: Kind of the head.
        labels: Names of its labels, in the order of the logits.
        logits: (N, outputs).
        targets: True answers for the N rows, as in ``Targets.arrays``.
        temperature: Divisor of the logits.
        threshold: Minimum probability of the second label of a sigmoid head, or of each label of a multilabel head, one
            for all or one per label. Other heads ignore it.
        seed: Seed of the resamples.
        intervals: Whether to compute the intervals, which takes much longer than the metrics.
    """
    options: dict[str, Any] = {"seed": seed, "intervals": intervals}
    if kind == "regression":
        return score_regression(logits, targets, **options)
    options["temperature"] = temperature
    if kind == "ordinal":
        return score_ordinal(labels, logits, targets, **options)
    if kind == "multilabel":
        each = [threshold] * len(labels) if isinstance(threshold, float) else threshold
        return score_multilabel(labels, logits, targets, thresholds=each, **options)
    first = threshold if isinstance(threshold, float) else threshold[0]
    return metrics.score(kind, labels, logits, targets, threshold=first, **options)


def selection_score(evaluation: Mapping[str, Any], *, teaches_embedding: bool) -> float | None:
    """Returns the score by which runs are compared: the mean of those that select the best epoch of a run.

    Args:
        evaluation: Content of ``evaluation.json``.
        teaches_embedding: Whether the sentence embedding is a task, whose Spearman correlation then counts.

    Returns:
        The score; None if validation has no labelled rows and no correlation counts.
    """
    heads = evaluation["validation"].values()
    values = [found.get(SELECTION[found.get("kind", "softmax")]) for found in heads]
    if teaches_embedding:
        values.append(evaluation.get("similarity", {}).get("spearman_after"))
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def quick_score(
    kind: HeadKind, labels: Sequence[str], logits: Floats, targets: NDArray[Any]
) -> dict[str, float | None]:
    """Computes the metrics that training logs after each epoch, from raw logits; takes the arguments of ``score``.

    Returns:
        Metrics by name, that of ``SELECTION`` among them; None where one is undefined.
    """
    if kind == "regression":
        return quick_score_regression(logits, targets)
    if kind == "ordinal":
        return quick_score_ordinal(labels, logits, targets)
    if kind == "multilabel":
        return quick_score_multilabel(logits, targets)
    return metrics.quick_score(kind, logits, targets)

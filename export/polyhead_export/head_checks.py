"""Checks of the gate that compare the predictions of each kind of head in a graph and in the trained model.

::

    outputs for golden texts and evaluation data --> label_disagreement, value_difference
    outputs for evaluation data, true answers ----> what accuracy and calibration the graph loses
                                              ----> whether a head that abstains keeps its promise
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Check, Head
from polyhead_training.evaluation.probabilities import is_labelled
from polyhead_training.evaluation.selective import interval

from .eval_data import DROPS, EvalData, predictions
from .runners import Outputs
from .settings import Limits

# Outputs of a graph and of the trained model for the same texts.
Pair = tuple[Outputs, Outputs]


def compare_predictions(pairs: Sequence[Pair], heads: Sequence[Head], limits: Limits) -> Iterator[Check]:
    """Yields how far the predictions of the graph and of the trained model differ.

    Args:
        pairs: Outputs for the golden texts and the evaluation data.
        heads: The heads.
        limits: The limits.

    Yields:
        ``label_disagreement``: share of different predictions of all heads that predict one label. One such check for
        each multilabel head: share of different decisions about a label. ``value_difference`` and
        ``value_difference_mean`` of each regression head: largest and mean difference in units of its spread.
    """
    single = [head for head in heads if head.kind not in ("multilabel", "regression")]
    differs = [_differs(pair, head) for pair in pairs for head in single]
    yield _disagreement("label_disagreement", differs, limits)
    for head in heads:
        if head.kind == "multilabel":
            decisions = [_differs(pair, head) for pair in pairs]  # (texts, labels) each
            yield _disagreement(f"label_disagreement.{head.name}", decisions, limits)
        if head.kind == "regression":
            found = [np.abs(predictions(ours, head) - predictions(theirs, head)) for ours, theirs in pairs]
            differences = np.concatenate(found) / head.spread  # (texts,)
            yield Check(f"value_difference.{head.name}", float(differences.max()), limits.value_difference)
            yield Check(f"value_difference_mean.{head.name}", float(differences.mean()), limits.value_difference_mean)


def compare_scores(eval_data: EvalData, rows: Outputs, heads: Sequence[Head], limits: Limits) -> Iterator[Check]:
    """Yields the scores that each head loses on the evaluation data, and the change of its calibration error."""
    for column, head in enumerate(heads):
        if not eval_data.labelled_rows(column):
            continue
        ours, theirs = (eval_data.score(outputs, head, column) for outputs in (rows, eval_data.reference))
        for metric, limit in DROPS[head.kind].items():
            score = theirs[metric] or 0.0
            allowed = getattr(limits, limit)
            if limit == "accuracy_drop":
                allowed = _at_least_one(allowed, _share_of_one(eval_data, head, column, metric, score))
            yield Check(f"{metric}_drop.{head.name}", max(0.0, score - (ours[metric] or 0.0)), allowed)
        if head.kind != "regression":
            change = abs((ours["ece"] or 0.0) - (theirs["ece"] or 0.0))
            yield Check(f"calibration.{head.name}", change, limits.calibration)


def compare_abstention(eval_data: EvalData, rows: Outputs, heads: Sequence[Head], limits: Limits) -> Iterator[Check]:
    """Yields how the answers of heads that abstain differ on the evaluation data, for a threshold that both share.

    Yields:
        For each head with a threshold: ``coverage_difference``, of the shares that are answered;
        ``answered_accuracy_drop``, accuracy that the answered texts lose; ``promise_gap``, the promised accuracy minus
        the upper end of the 95 % interval of the graph's, above 0 where the evaluation data contradicts the promise.
    """
    for column, head in enumerate(heads):
        total = eval_data.labelled_rows(column)
        if head.abstention is None or head.abstains_below is None or not total:
            continue
        ours, theirs = (eval_data.answered(outputs, head, column) for outputs in (rows, eval_data.reference))
        yield Check(f"coverage_difference.{head.name}", abs(ours[0] - theirs[0]) / total, limits.coverage_difference)
        drop = _accuracy(theirs) - _accuracy(ours)
        yield Check(f"answered_accuracy_drop.{head.name}", max(0.0, drop), limits.answered_accuracy_drop)
        upper = interval(ours[1], ours[0])[1] if ours[0] else 1.0
        yield Check(f"promise_gap.{head.name}", max(0.0, head.abstention.accuracy - upper), limits.promise_gap)


def compare_prediction_sets(
    eval_data: EvalData, rows: Outputs, heads: Sequence[Head], limits: Limits
) -> Iterator[Check]:
    """Yields ``set_coverage_gap`` of each head with prediction sets.

    It is the wanted coverage minus the upper end of the 95 % interval of the graph's, above 0 where the evaluation data
    contradicts it.
    """
    for column, head in enumerate(heads):
        total = eval_data.labelled_rows(column)
        if head.prediction_sets is None or not total:
            continue
        sets = head.prediction_sets
        upper = interval(eval_data.covered(rows, head, column, sets.threshold), total)[1]
        gap = max(0.0, sets.coverage - upper)
        yield Check(f"set_coverage_gap.{head.name}", gap, limits.promise_gap)


def _disagreement(name: str, differs: Sequence[NDArray[np.bool_]], limits: Limits) -> Check:
    if not differs:
        return Check(name, 0.0, limits.label_disagreement)
    answers = np.concatenate(differs)
    return Check(name, float(answers.mean()), _at_least_one(limits.label_disagreement, 1 / answers.size))


def _at_least_one(limit: float, share: float) -> float:
    """Returns a limit that one answer with this share of all does not exceed, while two do; a limit of 0 allows none.

    On few texts, a limit may be finer than one answer, which is chance.
    """
    return max(limit, 1.5 * share) if limit else 0.0


def _share_of_one(eval_data: EvalData, head: Head, column: int, metric: str, score: float) -> float:
    """Returns how much one wrong answer takes from an accuracy, or one label less from a micro-F1 of ``score``."""
    if metric == "accuracy":
        return 1 / eval_data.labelled_rows(column)
    # A true positive less takes 2 from the numerator of 2 TP / (true labels + predicted labels), and 1 from its
    # denominator.
    targets = eval_data.targets[column]
    predicted = predictions(eval_data.reference, head)[is_labelled(targets)]
    return (2 - score) / max(1, int((targets > 0).sum()) + int(predicted.sum()) - 1)


def _accuracy(counts: tuple[int, int]) -> float:
    answered, correct = counts
    return correct / answered if answered else 1.0


def _differs(pair: Pair, head: Head) -> NDArray[np.bool_]:
    ours, theirs = (predictions(outputs, head) for outputs in pair)
    return np.asarray(ours != theirs)

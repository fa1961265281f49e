"""Selective classification: the confidence below which a head abstains, so that its answers keep a promised accuracy.

::

    validation logits --confident_answers--> confidence, correct --fit_promise--> Promise (threshold)
    logits of a split --confident_answers--> confidence, correct --selective_score--> coverage, accuracy, curve

The threshold is found by multi-start fixed sequence testing (Angelopoulos et al., Learn then Test, arXiv 2110.01052,
algorithm 1). Candidates are the confidences of the validation rows; each has the hypothesis that the accuracy of the
texts above it is below the promise. Given such a confidence, the rows above it are independent draws of the texts above
it (Geifman and El-Yaniv, arXiv 1705.08500), so that the exact binomial test applies: the Clopper-Pearson lower bound of
their accuracy is at least the promise. The tests start at coverages of 1, 1/2, 1/4, ... of the rows, fixed in advance,
share the error rate among these starts, and proceed from each to lower confidences until one fails. The lowest
confidence that passed is the threshold. The promise concerns texts that are distributed like the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from polyhead_training.model_types import HeadKind

from .probabilities import Answers, Floats, Threshold, answers, labelled, probabilities

# Points of a curve: enough to draw it, few enough for a manifest.
_CURVE_POINTS = 41
# Rows at the smallest coverage whose lower bound is computed where no threshold is found.
_MIN_BOUND_ROWS = 20
# Two-sided error rate of the intervals, as of all others in evaluation.json.
_INTERVAL_ERROR = 0.05


class ConfidentAnswers(NamedTuple):
    """The predictions of a head in N labelled rows.

    Attributes:
        confidence: (N,) float32 probability of the prediction, as the server computes it.
        correct: (N,) whether the prediction is the true label.
    """

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Promise:
    """The accuracy that a head keeps by abstaining.

    Attributes:
        accuracy: Promised accuracy of the texts on which the head does not abstain, 0 to 1.
        certainty: Probability that the promise holds, 0 to 1.
        threshold: Lowest confidence at which the head answers; None where no confidence keeps the promise.
        lower_bound: Accuracy that is certain at the threshold; where it is None, the highest that a coverage of 1, 1/2,
            1/4, ... keeps; 0 without rows.
        coverage: Share of these rows that is answered; 0 without a threshold.
        rows: Validation rows that it was fitted on.
        curve: Threshold, coverage and accuracy of these rows, lowest coverage first.
    """

    accuracy: float
    certainty: float
    threshold: float | None
    lower_bound: float
    coverage: float
    rows: int
    curve: list[dict[str, float]]


@dataclass(frozen=True)
class SelectiveScore:
    """Coverage and accuracy of a head that abstains, on the labelled rows of a split.

    Attributes:
        promise: What was promised.
        coverage: Share of the rows on which the head does not abstain, 0 to 1; None without a threshold or rows.
        accuracy: Share of those that are answered correctly, 0 to 1; None where there are none.
        intervals: 95 % Clopper-Pearson intervals of coverage and accuracy, low and high.
        curve: Threshold, coverage and accuracy with its 95 % interval, lowest coverage first.
    """

    promise: Promise
    coverage: float | None
    accuracy: float | None
    intervals: dict[str, list[float]]
    curve: list[dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Returns the score in the form of ``evaluation.json``, without the curve of the promise."""
        content = asdict(self)
        del content["promise"]["curve"]
        return content

    def describe(self, head: str) -> str:
        """Returns a sentence for the terminal: what the head keeps, or the best that it can."""
        promise = self.promise
        wanted = f"an accuracy of {promise.accuracy:g} with certainty {promise.certainty:g}"
        if promise.threshold is None:
            fewest = _fewest_rows(promise.accuracy, promise.certainty)
            rows = f"{promise.rows:,} validation rows" + f" of the {fewest:,} that it takes" * (promise.rows < fewest)
            reason = f"no confidence keeps {wanted} on {rows}"
            # Rounded down, as more would not be kept.
            best = f"the highest accuracy that one keeps is {math.floor(1000 * promise.lower_bound) / 1000:g}"
            return f"warning: head {head!r} does not abstain: {reason}; {best}"
        share = f"which answers {promise.coverage:.1%} of the validation rows"
        return f"head {head!r} keeps {wanted} by abstaining below a confidence of {promise.threshold:.4g}, {share}"


def confident_answers(
    kind: HeadKind, logits: Floats, targets: Answers, temperature: float = 1.0, threshold: Threshold = 0.5
) -> ConfidentAnswers:
    """Computes the confidence of a head's predictions in the labelled rows, and whether they are correct.

    Args:
        kind: ``softmax``, ``sigmoid`` or ``ordinal``.
        logits: (N, outputs).
        targets: (N,) indices of the true labels, as in ``Targets.arrays``.
        temperature: Divisor of the logits.
        threshold: Minimum probability at which a sigmoid head predicts its second label.
    """
    logits, targets = labelled(logits, targets)
    predicted = answers(kind, logits, temperature, threshold)  # (N,)
    return ConfidentAnswers(confidence_of(kind, logits, temperature, threshold), predicted == targets)


def confidence_of(
    kind: HeadKind, logits: Floats, temperature: float = 1.0, threshold: Threshold = 0.5
) -> NDArray[np.float32]:
    """Computes the probability of a head's prediction in each of N rows, (N,) float32, as the server does."""
    predicted = answers(kind, logits, temperature, threshold)  # (N,)
    found = probabilities(kind, logits, temperature).astype(np.float32)  # (N, labels) or (N, 1)
    if kind == "sigmoid":
        found = np.hstack([np.float32(1) - found, found])
    return np.asarray(found[np.arange(len(predicted)), predicted])


def fit_promise(found: ConfidentAnswers, accuracy: float, certainty: float) -> Promise:
    """Finds the lowest confidence that keeps a promised accuracy.

    Args:
        found: Predictions for the validation rows.
        accuracy: The promise, above 0 and below 1.
        certainty: Probability that the promise holds, above 0 and below 1.
    """
    thresholds, answered, correct = _cuts(found)
    curve = [_point(thresholds, answered, correct, cut) for cut in _evenly_spaced(answered)]
    rows = len(found.confidence)
    if not rows:
        return Promise(accuracy, certainty, None, 0.0, 0.0, 0, [])
    fewest = _fewest_rows(accuracy, certainty)
    starts = _halvings(rows, fewest)
    bounds = _lower_bounds(correct, answered, (1 - certainty) / len(starts))  # (cuts,)
    failed = np.append(np.flatnonzero(bounds < accuracy), len(bounds))
    first = np.searchsorted(answered, starts)  # the cut at which each start begins
    last = failed[np.searchsorted(failed, first)] - 1  # the last cut that passes, before the first if there is none
    if not (last >= first).any():
        # At least as many halvings as starts, whose bounds all missed the promise at a higher error rate.
        halvings = _halvings(rows, min(fewest, _MIN_BOUND_ROWS))
        cuts = np.searchsorted(answered, halvings)
        best = _lower_bounds(correct[cuts], answered[cuts], (1 - certainty) / len(halvings)).max()
        return Promise(accuracy, certainty, None, float(best), 0.0, rows, curve)
    cut = int(last[last >= first].max())
    coverage = float(answered[cut] / rows)
    return Promise(accuracy, certainty, float(thresholds[cut]), float(bounds[cut]), coverage, rows, curve)


def _fewest_rows(accuracy: float, certainty: float) -> int:
    """Returns the number of rows below which not even correct answers to all of them keep a promise."""
    return math.ceil(math.log(1 - certainty) / math.log(accuracy))


def _halvings(rows: int, fewest: int) -> list[int]:
    """Returns the rows at coverages of 1, 1/2, 1/4, ..., down to the fewest; at least all of the rows."""
    return [rows >> count for count in range(rows.bit_length()) if rows >> count >= fewest] or [rows]


def selective_score(promise: Promise, found: ConfidentAnswers) -> SelectiveScore:
    """Measures coverage and accuracy at a promise's threshold, and the risk-coverage curve of the rows."""
    thresholds, answered, correct = _cuts(found)
    rows, intervals = len(found.confidence), {}
    coverage = accuracy = None
    if promise.threshold is not None and rows:
        is_answered = found.confidence >= promise.threshold  # (N,)
        count, hits = int(is_answered.sum()), int(found.correct[is_answered].sum())
        coverage = count / rows
        intervals["coverage"] = interval(count, rows)
        if count:
            accuracy = hits / count
            intervals["accuracy"] = interval(hits, count)
    curve = []
    for cut in _evenly_spaced(answered):
        low, high = interval(int(correct[cut]), int(answered[cut]))
        curve.append({**_point(thresholds, answered, correct, cut), "low": low, "high": high})
    return SelectiveScore(promise, coverage, accuracy, intervals, curve)


def _cuts(found: ConfidentAnswers) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the thresholds that divide the rows differently, highest first, and what lies at or above each.

    Returns:
        (cuts,) threshold, just above the next lower confidence and 0 for all rows; number of rows; of these, correct.
    """
    order = np.argsort(-found.confidence, kind="stable")
    confidence, correct = found.confidence[order], np.cumsum(found.correct[order], dtype=np.int64)
    last = np.flatnonzero(np.append(confidence[1:] < confidence[:-1], True)[: len(order)])  # of equal confidences
    # The rows strictly above a confidence are exchangeable; the row with that confidence is not one of them.
    above = np.nextafter(confidence[last[:-1] + 1], np.float32(2))
    return np.append(above, np.float32(0))[: len(last)], last + 1, correct[last]


def _lower_bounds(correct: NDArray[np.int64], answered: NDArray[np.int64], error: float) -> NDArray[np.float64]:
    """Returns the one-sided Clopper-Pearson lower bounds of accuracies, (cuts,)."""
    return np.where(correct > 0, stats.beta.ppf(error, np.maximum(correct, 1), answered - correct + 1), 0.0)


def interval(hits: int, count: int) -> list[float]:
    """Returns the 95 % Clopper-Pearson interval of a share, low and high."""
    found = stats.binomtest(hits, count).proportion_ci(1 - _INTERVAL_ERROR, method="exact")
    return [float(found.low), float(found.high)]


def _evenly_spaced(answered: NDArray[np.int64]) -> Sequence[int]:
    """Returns the cuts of a curve, whose coverages are about evenly spaced."""
    if not len(answered):
        return []
    wanted = np.linspace(0, answered[-1], _CURVE_POINTS)[1:]
    return [int(cut) for cut in np.unique(np.searchsorted(answered, wanted))]


def _point(
    thresholds: NDArray[np.float32], answered: NDArray[np.int64], correct: NDArray[np.int64], cut: int
) -> dict[str, float]:
    return {
        "threshold": float(thresholds[cut]),
        "coverage": float(answered[cut] / answered[-1]),
        "accuracy": float(correct[cut] / answered[cut]),
    }

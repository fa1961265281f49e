"""Metrics of ordinal and regression heads, whose errors have a size.

::

    logits of an ordinal head --metrics.score--> accuracy, F1, calibration ---+--> OrdinalScore
                              --answers, expected_values--> MAE, QWK, rho ----+
    values of a regression head ------------------------------------------------> RegressionScore
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead_training.data.targets import label_values

from .metrics import PERCENTILES, HeadScore, defined, resampled_sums, score
from .probabilities import Answers, Floats, Integers, answers, confidences, expected_values, labelled

# Rows in the chart of a regression head; more dots would cover each other.
_MAX_POINTS = 300
# Variance of numbers, as a share of their mean square, below which they are equal but for rounding.
_MIN_VARIANCE = 1e-9


@dataclass(frozen=True)
class OrdinalScore(HeadScore):
    """Metrics of an ordinal head: those of a classification, and those that measure the size of errors.

    Attributes:
        mae: Mean absolute difference between the values of the predicted and the true label. Values are the numbers
            that the labels spell, or else their places.
        mae_baseline: That of always predicting the median of the rows.
        qwk: Quadratic weighted kappa of the labels' places, -1 to 1 (Cohen 1968).
        spearman: Rank correlation of the expected value with the true one, -1 to 1.
    """

    kind: str = "ordinal"
    mae: float | None = None
    mae_baseline: float | None = None
    qwk: float | None = None
    spearman: float | None = None


@dataclass(frozen=True)
class RegressionScore:
    """Metrics of a regression head on one split, over the labelled rows; without such rows every metric is None.

    Attributes:
        rows: Number of labelled rows.
        mae: Mean absolute error, in units of the data.
        mae_baseline: That of always predicting the median of the rows.
        rmse: Root of the mean squared error, in units of the data.
        r2: Share of the variance that is explained, at most 1; 0 is that of always predicting the mean of the rows.
        pearson: Correlation of prediction and number, -1 to 1.
        spearman: Rank correlation of prediction and number, -1 to 1.
        intervals: 95 % intervals of mae, rmse and r2, low and high; empty if not requested.
        points: Number and prediction of up to 300 rows, evenly spaced in the order of the rows.
    """

    rows: int
    kind: str = "regression"
    mae: float | None = None
    mae_baseline: float | None = None
    rmse: float | None = None
    r2: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    points: list[list[float]] = field(default_factory=list)
    # The output is the prediction.
    temperature = 1.0
    threshold = None

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics in the form of ``evaluation.json``."""
        return asdict(self)


def score_ordinal(
    labels: Sequence[str],
    logits: Floats,
    targets: Integers,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    intervals: bool = True,
) -> OrdinalScore:
    """Computes all metrics of one ordinal head.

    Args:
        labels: Names of the labels, from the lowest to the highest.
        logits: (N, labels - 1).
        targets: (N,) indices of the true labels, ``UNLABELLED`` for rows without a label.
        temperature: Divisor of the logits.
        seed: Seed of the resamples.
        intervals: Whether to compute the intervals.
    """
    found = {**vars(score("ordinal", labels, logits, targets, temperature=temperature, seed=seed, intervals=intervals))}
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return OrdinalScore(**found)
    values = np.array(label_values(labels))
    predicted = answers("ordinal", logits)  # (N,)
    true = values[targets]
    errors = np.abs(values[predicted] - true)
    if intervals:
        found["intervals"] = {**found["intervals"], **_ordinal_intervals(errors, targets, predicted, seed)}
    return OrdinalScore(
        **found,
        mae=float(errors.mean()),
        mae_baseline=float(np.abs(true - np.median(true)).mean()),
        qwk=defined(quadratic_weighted_kappa(_place_sums(targets, predicted).sum(axis=0), len(targets))),
        spearman=correlation("spearmanr", expected_values(logits, list(values), temperature), true),
    )


def score_regression(outputs: Floats, targets: Answers, *, seed: int = 0, intervals: bool = True) -> RegressionScore:
    """Computes all metrics of one regression head.

    Args:
        outputs: (N, 1) predictions.
        targets: (N,) numbers, NaN for rows without one.
        seed: Seed of the resamples.
        intervals: Whether to compute the intervals.
    """
    outputs, targets = labelled(outputs, targets)
    if not len(targets):
        return RegressionScore(0)
    predicted, true = answers("regression", outputs), targets.astype(np.float64)  # (N,)
    errors = predicted - true
    sums = _number_sums(errors, true).sum(axis=0)
    step = -(-len(true) // _MAX_POINTS)
    return RegressionScore(
        rows=len(true),
        mae=float(np.abs(errors).mean()),
        mae_baseline=float(np.abs(true - np.median(true)).mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        r2=defined(_explained(sums, len(true))),
        pearson=correlation("pearsonr", predicted, true),
        spearman=correlation("spearmanr", predicted, true),
        intervals=_regression_intervals(errors, true, seed) if intervals else {},
        points=np.stack([true, predicted], axis=1)[::step].tolist(),
    )


def quick_score_ordinal(labels: Sequence[str], logits: Floats, targets: Integers) -> dict[str, float | None]:
    """Computes the metrics that training logs after each epoch: ``mae``, ``qwk`` and ``nll`` (nats).

    Takes the arguments of ``score_ordinal``.
    """
    logits, targets = labelled(logits, targets)
    if not len(targets):
        return {"mae": None, "qwk": None, "nll": None}
    values, predicted = np.array(label_values(labels)), answers("ordinal", logits)
    return {
        "mae": float(np.abs(values[predicted] - values[targets]).mean()),
        "qwk": defined(quadratic_weighted_kappa(_place_sums(targets, predicted).sum(axis=0), len(targets))),
        "nll": float(confidences("ordinal", logits, targets).nll.mean()),
    }


def quick_score_regression(outputs: Floats, targets: Answers) -> dict[str, float | None]:
    """Computes the metrics that training logs after each epoch: ``mae``, ``rmse``, ``r2`` and ``spearman``.

    Takes the arguments of ``score_regression``.
    """
    found = score_regression(outputs, targets, intervals=False)
    return {"mae": found.mae, "rmse": found.rmse, "r2": found.r2, "spearman": found.spearman}


def quadratic_weighted_kappa(sums: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Computes the quadratic weighted kappa from (..., 4) sums of ``_place_sums`` over rows; NaN where it is undefined.

    The weights are squares, so that sums over the rows do: a table of true and predicted labels for each resample would
    take memory by the square of the number of labels.
    """
    squares, true, predicted, both = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    expected = both - 2.0 * true * predicted / count
    return np.asarray(np.where(expected > 0, 1.0 - squares / np.where(expected > 0, expected, 1.0), np.nan))


def _place_sums(targets: Integers, predicted: Integers) -> NDArray[np.float64]:
    """Returns summands of the rows, (N, 4): squared difference, true place, predicted place, sum of their squares."""
    true, found = targets.astype(np.float64), predicted.astype(np.float64)
    return np.stack([(true - found) ** 2, true, found, true**2 + found**2], axis=1)


def correlation(measure: Literal["spearmanr", "pearsonr"], first: Floats, second: Floats) -> float | None:
    """Computes a correlation of scipy; None with fewer than two rows, and where a side is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy import stats  # takes a second to import

    return defined(getattr(stats, measure)(first, second).statistic)


def _number_sums(errors: Floats, true: Floats) -> NDArray[np.float64]:
    """Returns summands of the rows, (N, 3): squared error, distance of the number to the mean of all, its square.

    The squares of large numbers themselves would lose a small spread.
    """
    centered = true - true.mean()
    return np.stack([errors**2, centered, centered**2], axis=1)


def _explained(sums: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Computes R2 from (..., 3) sums of ``_number_sums`` over rows; NaN for equal numbers."""
    squares, total, total_squares = np.moveaxis(sums, -1, 0)
    variance = total_squares - total**2 / count
    # Rounding leaves a little of the variance of equal numbers.
    varies = variance > _MIN_VARIANCE * total_squares
    return np.asarray(np.where(varies, 1.0 - squares / np.where(varies, variance, 1.0), np.nan))


def _ordinal_intervals(errors: Floats, targets: Integers, predicted: Integers, seed: int) -> dict[str, list[float]]:
    summands = np.hstack([errors[:, None], _place_sums(targets, predicted)])
    sums = resampled_sums(summands, seed)
    kappas = quadratic_weighted_kappa(sums[:, 1:], len(targets))
    return {"mae": _percentiles(sums[:, 0] / len(targets)), "qwk": _percentiles(kappas)}


def _regression_intervals(errors: Floats, true: Floats, seed: int) -> dict[str, list[float]]:
    summands = np.hstack([np.abs(errors)[:, None], _number_sums(errors, true)])
    sums = resampled_sums(summands, seed)
    return {
        "mae": _percentiles(sums[:, 0] / len(true)),
        "rmse": _percentiles(np.sqrt(sums[:, 1] / len(true))),
        "r2": _percentiles(_explained(sums[:, 1:], len(true))),
    }


def _percentiles(values: NDArray[np.float64]) -> list[float]:
    """Returns the ends of an interval; a resample without variance has no value."""
    known = values[~np.isnan(values)]
    found: list[float] = np.percentile(known, PERCENTILES).tolist() if len(known) else []
    return found

"""Temperatures and thresholds are optimal on validation, and conservative for few rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.calibration import best_threshold, fit_temperature
from polyhead_training.evaluation.metrics import macro_f1
from polyhead_training.evaluation.probabilities import answers, confidences, log_probabilities
from polyhead_training.model_types import HeadKind


def _drawn(kind: HeadKind, rows: int, factor: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose probabilities are the truth, times a factor."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (rows, 4 if kind == "softmax" else 1))
    shares = np.exp(log_probabilities(kind, logits)).cumsum(axis=1)
    return logits * factor, (rng.random((rows, 1)) > shares).sum(axis=1).clip(max=shares.shape[1] - 1)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_temperature_recovers_the_scale_of_the_logits(kind: HeadKind, factor: float) -> None:
    assert fit_temperature(kind, *_drawn(kind, 20_000, factor)) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_temperature_maximizes_the_likelihood(kind: HeadKind) -> None:
    logits, targets = _drawn(kind, 2_000, 2.5)
    found = fit_temperature(kind, logits, targets)
    best, cooler, warmer = (confidences(kind, logits, targets, found * change).nll.mean() for change in (1, 0.97, 1.03))
    assert best < min(cooler, warmer)


@pytest.mark.parametrize("logit", [np.nan, np.inf])
def test_logit_that_is_not_finite_leaves_the_temperature_at_1(logit: float) -> None:
    logits = np.array([[0.5, logit], [1.0, 0.0]])
    assert fit_temperature("softmax", logits, np.array([0, 1])) == 1.0


@pytest.mark.parametrize("rows", [1, 2, 5, 50])
@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_temperature_never_makes_validation_less_likely(rows: int, factor: float) -> None:
    logits, targets = _drawn("softmax", rows, factor)
    found = fit_temperature("softmax", logits, targets)
    before, after = (confidences("softmax", logits, targets, value).nll.mean() for value in (1.0, found))
    assert after <= before + 1e-9


def test_few_correct_rows_do_not_make_the_head_fully_confident() -> None:
    logits, targets = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    assert 0.2 < fit_temperature("softmax", logits, targets) < 1


@pytest.mark.parametrize(("targets", "bound"), [([0, 1], 0.05), ([1, 0], 20.0)])
def test_temperature_stays_within_its_bounds(targets: list[int], bound: float) -> None:
    logits = np.array([[-1e-3], [1e-3]]) if bound < 1 else np.array([[-1e3], [1e3]])
    many = np.tile(logits, (20_000, 1)) if bound < 1 else logits
    assert fit_temperature("sigmoid", many, np.tile(targets, len(many) // 2)) == pytest.approx(bound, rel=1e-6)


def test_unlabelled_rows_have_no_effect() -> None:
    logits, targets = _drawn("softmax", 500, 2.0)
    mixed = np.vstack([logits, -logits]), np.concatenate([targets, np.full(500, UNLABELLED)])
    assert fit_temperature("softmax", *mixed) == fit_temperature("softmax", logits, targets)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_labelled_rows_nothing_is_fitted(rows: int) -> None:
    targets = np.full(rows, UNLABELLED)
    assert fit_temperature("softmax", np.ones((rows, 4)), targets) == 1.0
    assert fit_temperature("sigmoid", np.ones((rows, 1)), targets) == 1.0
    assert best_threshold(np.ones((rows, 1)), targets) == 0.5


def test_threshold_has_the_highest_macro_f1() -> None:
    logits, targets = _drawn("sigmoid", 400)
    found = best_threshold(logits - 2.0, targets)
    assert found == pytest.approx(1 / (1 + np.exp(2.0)), abs=0.06)
    reached, *others = (
        macro_f1(targets, answers("sigmoid", logits - 2.0, threshold=share))
        for share in (found, *np.arange(0.05, 1, 0.05))
    )
    assert reached >= max(others)


def test_ties_between_thresholds_prefer_the_one_nearest_to_one_half() -> None:
    logits = np.log(np.array([[0.1 / 0.9], [0.9 / 0.1]]))
    assert best_threshold(logits, np.array([0, 1])) == 0.5
    # 0.2 is a no, 0.305 a yes: 0.21 to 0.3 are right about both.
    assert best_threshold(np.log(np.array([[0.2 / 0.8], [0.305 / 0.695]])), np.array([0, 1])) == 0.3


def test_threshold_applies_to_the_calibrated_probability() -> None:
    logits, targets = 3.0 * np.log(np.array([[0.2 / 0.8], [0.305 / 0.695]])), np.array([0, 1])
    assert best_threshold(logits, targets, temperature=3.0) == 0.3
    assert best_threshold(logits, targets) < 0.2

"""Selective classification: a promised accuracy is kept on texts like those of validation, or reported as missed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.selective import (
    ConfidentAnswers,
    Promise,
    confident_answers,
    fit_promise,
    selective_score,
)
from scipy import stats

SHAPE = 10.0


def draw(rows: int, seed: int) -> ConfidentAnswers:
    """Answers of a calibrated head: confidences of the distribution Beta(10, 1), correct with just that probability."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(SHAPE, 1, rows)
    return ConfidentAnswers(confidence.astype(np.float32), rng.random(rows) < confidence)


def true_accuracy(threshold: float) -> float:
    """Accuracy of that head on all texts above a confidence: the mean of the distribution's tail."""
    return float(SHAPE / (SHAPE + 1) * (1 - threshold ** (SHAPE + 1)) / (1 - threshold**SHAPE))


@pytest.mark.parametrize(("rows", "accuracy"), [(300, 0.9), (1000, 0.93), (2000, 0.95)])
def test_promise_holds_with_its_certainty(rows: int, accuracy: float) -> None:
    promises = [fit_promise(draw(rows, seed), accuracy, 0.95) for seed in range(100)]
    met = [promise for promise in promises if promise.threshold is not None]
    assert len(met) > 60
    held = [true_accuracy(promise.threshold or 0.0) >= accuracy for promise in met]
    assert sum(held) >= 0.95 * len(held)


def test_less_certainty_answers_more() -> None:
    found = draw(1500, 0)
    strict, loose = (fit_promise(found, 0.95, certainty).coverage for certainty in (0.99, 0.6))
    assert 0 < strict < loose


def test_rows_at_the_threshold_pass_the_exact_test() -> None:
    found = draw(1500, 3)
    promise = fit_promise(found, 0.95, 0.95)
    assert promise.threshold is not None
    answered = found.confidence >= promise.threshold
    # 1,500 rows are halved four times before they are fewer than the 59 that are required.
    test = stats.binomtest(int(found.correct[answered].sum()), int(answered.sum()), 0.95, alternative="greater")
    assert 0.001 < test.pvalue <= 0.05 / 5
    assert promise.lower_bound >= 0.95
    assert promise.coverage == answered.mean()


def test_head_that_is_always_right_answers_everything() -> None:
    found = ConfidentAnswers(np.linspace(0.4, 1, 100, dtype=np.float32), np.ones(100, np.bool_))
    assert fit_promise(found, 0.9, 0.95).threshold == 0


def test_promise_that_no_confidence_keeps_is_reported_with_the_best() -> None:
    found = draw(500, 0)
    promise = fit_promise(found, 0.995, 0.95)
    assert promise.threshold is None
    assert 0.85 < promise.lower_bound < 0.995
    line = selective_score(promise, found).describe("topic")
    assert line.startswith("warning: head 'topic' does not abstain: no confidence keeps an accuracy of 0.995")
    assert "on 500 validation rows of the 598 that it takes;" in line
    assert line.endswith(f"the highest accuracy that one keeps is {np.floor(1000 * promise.lower_bound) / 1000:g}")


def test_best_that_can_be_had_is_that_of_the_most_confident_rows() -> None:
    confidence = np.linspace(0.2, 1, 240, dtype=np.float32)
    promise = fit_promise(ConfidentAnswers(confidence, confidence > 0.7), 0.995, 0.95)
    # The best quarter is right: 60 of 60, tested beside coverages of 1, 1/2 and 1/8.
    assert promise.lower_bound == pytest.approx((0.05 / 4) ** (1 / 60))


def test_best_that_can_be_had_is_below_a_promise_that_is_not_kept() -> None:
    correct = np.ones(40, np.bool_)
    correct[:14:2] = False  # 33 of 40 are right, and fewer of the most confident
    # Just too uncertain for three tests, at coverages of 1, 1/2 and 1/4, and certain enough for two.
    certainty = 1 - 2.5 * float(stats.binom.sf(32, 40, 0.7))
    promise = fit_promise(ConfidentAnswers(np.linspace(1, 0.2, 40, dtype=np.float32), correct), 0.7, certainty)
    assert promise.threshold is None
    assert 0.6 < promise.lower_bound < 0.7


def test_too_few_rows_keep_no_promise() -> None:
    found = ConfidentAnswers(np.linspace(0.5, 1, 58, dtype=np.float32), np.ones(58, np.bool_))
    assert fit_promise(found, 0.95, 0.95).threshold is None  # ln 0.05 / ln 0.95 = 58.4
    assert fit_promise(ConfidentAnswers(found.confidence[:0], found.correct[:0]), 0.95, 0.95) == Promise(
        0.95, 0.95, None, 0.0, 0.0, 0, []
    )


def test_equal_confidences_are_answered_together() -> None:
    confidence = np.repeat(np.array([0.99, 0.9, 0.6], np.float32), 200)
    correct = np.repeat([True, True, False], 200)
    promise = fit_promise(ConfidentAnswers(confidence, correct), 0.9, 0.95)
    assert 0.6 < (promise.threshold or 0) < 0.9
    assert [point["coverage"] for point in promise.curve] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [point["accuracy"] for point in promise.curve] == pytest.approx([1, 1, 2 / 3])


def test_score_counts_what_is_answered() -> None:
    promise = Promise(0.9, 0.95, 0.75, 0.91, 0.5, 100, [])
    confidence = np.array([0.75, 0.9, 0.99, 0.7499999], np.float32)
    found = selective_score(promise, ConfidentAnswers(confidence, np.array([True, True, False, False])))
    assert found.coverage == 0.75
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.intervals["accuracy"] == pytest.approx([0.0943, 0.9916], abs=1e-4)  # Clopper-Pearson, 2 of 3
    assert [point["coverage"] for point in found.curve] == [0.25, 0.5, 0.75, 1]
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in found.curve)
    json.dumps(found.to_json(), allow_nan=False)


def test_head_that_answers_nothing_has_no_accuracy() -> None:
    found = selective_score(Promise(0.9, 0.95, 0.99, 0.9, 0.5, 9, []), draw(5, 0)._replace(confidence=np.full(5, 0.5)))
    assert (found.coverage, found.accuracy) == (0.0, None)


def test_long_curve_has_few_points() -> None:
    curve = fit_promise(draw(5000, 0), 0.9, 0.95).curve
    assert len(curve) == 40
    assert curve[-1]["coverage"] == 1
    assert [point["threshold"] for point in curve] == sorted((point["threshold"] for point in curve), reverse=True)


def test_confidence_is_the_probability_of_the_prediction() -> None:
    softmax = confident_answers("softmax", np.log([[0.2, 0.7, 0.1]]), np.array([1]))
    assert softmax.confidence == pytest.approx([0.7])
    assert softmax.correct.tolist() == [True]
    logits = np.log(np.array([[0.4 / 0.6], [0.2 / 0.8]]))
    sigmoid = confident_answers("sigmoid", logits, np.array([1, 1]), threshold=0.3)
    # 0.4 is above the threshold, so that the second label is predicted although it is the less probable one.
    assert (sigmoid.confidence.tolist(), sigmoid.correct.tolist()) == (pytest.approx([0.4, 0.8]), [True, False])
    above = np.array([[0.9, 0.45]])
    ordinal = confident_answers("ordinal", np.log(above / (1 - above)), np.array([2]))
    assert ordinal.confidence == pytest.approx([0.45])
    assert ordinal.correct.tolist() == [False]


def test_rows_without_a_label_count_for_nothing() -> None:
    found = confident_answers("softmax", np.eye(3), np.array([0, UNLABELLED, 1]))
    assert found.correct.tolist() == [True, False]

"""Probabilities, predictions and calibration follow their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from polyhead_training.evaluation.probabilities import (
    BINS,
    Bin,
    answers,
    calibration,
    confidences,
    log_probabilities,
    probabilities,
)
from polyhead_training.model_types import HeadKind


def test_probabilities_of_a_softmax_head_are_its_softmax() -> None:
    logits = np.log(np.array([[0.2, 0.3, 0.5]], dtype=np.float32)) + 7
    np.testing.assert_allclose(np.exp(log_probabilities("softmax", logits)), [[0.2, 0.3, 0.5]], rtol=1e-5)


def test_log_probabilities_of_a_sigmoid_head_cover_both_labels() -> None:
    logits = np.array([[math.log(3)], [0.0]])
    np.testing.assert_allclose(np.exp(log_probabilities("sigmoid", logits)), [[0.25, 0.75], [0.5, 0.5]])


@pytest.mark.parametrize(("kind", "width"), [("softmax", 5), ("sigmoid", 1)])
def test_probabilities_have_the_shape_of_the_logits(kind: HeadKind, width: int) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (7, width))
    expected = np.exp(log_probabilities(kind, logits, 2.0))
    np.testing.assert_allclose(probabilities(kind, logits, 2.0), expected if kind == "softmax" else expected[:, 1:])
    np.testing.assert_allclose(probabilities(kind, logits[3], 2.0), probabilities(kind, logits, 2.0)[3])


def test_temperature_divides_the_logits() -> None:
    logits = np.array([[2.0, -1.0, 0.5]])
    np.testing.assert_allclose(log_probabilities("softmax", logits, 4.0), log_probabilities("softmax", logits / 4))


def test_huge_logits_have_finite_likelihoods() -> None:
    found = log_probabilities("sigmoid", np.array([[1e4], [-1e4]]))
    np.testing.assert_allclose(found, [[-1e4, 0], [0, -1e4]])


def test_softmax_head_predicts_the_largest_logit_at_any_threshold() -> None:
    logits = np.array([[0.1, 0.3, 0.2], [5.0, 1.0, 0.0]])
    assert answers("softmax", logits, threshold=0.9).tolist() == [1, 0]


def test_sigmoid_head_predicts_its_second_label_from_the_threshold_on() -> None:
    assert answers("sigmoid", np.array([[0.0], [-0.001], [4.0]])).tolist() == [1, 0, 1]
    logits = np.array([[math.log(3) + 1e-6], [math.log(3) - 1e-6]])
    assert answers("sigmoid", logits, threshold=0.75).tolist() == [1, 0]
    assert answers("sigmoid", 2 * logits, temperature=2.0, threshold=0.75).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0, 20.0])
def test_temperature_does_not_change_predictions(temperature: float) -> None:
    rng = np.random.default_rng(0)
    for kind, width in (("softmax", 5), ("sigmoid", 1)):
        logits = rng.normal(0, 3, (500, width)).astype(np.float32)
        logits[0] = 0.0
        assert (answers(kind, logits, temperature) == answers(kind, logits)).all()  # type: ignore[arg-type]


def test_confidences_follow_their_definitions() -> None:
    found = confidences("softmax", np.log([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]), np.array([0, 0]))
    np.testing.assert_allclose(found.nll, [-math.log(0.7), -math.log(0.1)])
    np.testing.assert_allclose(found.brier, [0.09 + 0.04 + 0.01, 0.81 + 0.04 + 0.49])
    np.testing.assert_allclose(found.confidence, [0.7, 0.7])
    assert found.correct.tolist() == [True, False]


def test_brier_score_of_a_sigmoid_head_counts_one_label() -> None:
    found = confidences("sigmoid", np.array([[math.log(3)], [math.log(3)]]), np.array([1, 0]))
    np.testing.assert_allclose(found.brier, [0.25**2, 0.75**2])


def test_ece_is_the_mean_gap_of_confidence_and_accuracy() -> None:
    # Four rows at 0.9, three of them right; one row at 0.6, wrong.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    found = calibration(confidences("softmax", np.log(probabilities), np.array([0, 0, 0, 1, 1])))
    assert found.ece == pytest.approx((4 * abs(0.9 - 0.75) + 0.6) / 5)
    assert found.nll == pytest.approx(-(3 * math.log(0.9) + math.log(0.1) + math.log(0.4)) / 5)
    assert found.brier == pytest.approx((3 * 0.02 + 1.62 + 0.72) / 5)


def test_bins_count_every_row_once_and_are_none_when_empty() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    bins = calibration(confidences("softmax", np.log(probabilities), np.array([0, 0, 0, 1, 1]))).reliability
    assert len(bins) == BINS
    assert {index: found.count for index, found in enumerate(bins) if found.count} == {8: 1, 13: 4}
    assert bins[13].confidence == pytest.approx(0.9)
    assert bins[13].accuracy == 0.75
    assert bins[0] == Bin(0, None, None)


def test_fully_confident_rows_fall_into_the_last_bin() -> None:
    found = confidences("softmax", np.array([[800.0, 0.0]]), np.array([0]))
    assert found.bin.tolist() == [BINS - 1]

"""Prediction sets: the true label is in them as often as wanted, and they are no larger than necessary."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.prediction_sets import (
    PredictionSets,
    fit_prediction_sets,
    in_sets,
    score_prediction_sets,
)

LABELS = 6


def draw(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns logits of a head that is overconfident, and true labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, LABELS))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (rng.random((rows, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=LABELS - 1)
    return (3 * logits).astype(np.float32), targets


@pytest.mark.parametrize("coverage", [0.8, 0.95])
@pytest.mark.parametrize("rows", [50, 300])
def test_coverage_holds_for_further_texts(coverage: float, rows: int) -> None:
    found = []
    for seed in range(60):
        sets = fit_prediction_sets(*draw(rows, seed), coverage)
        score = score_prediction_sets(sets, *draw(500, 1000 + seed))
        assert score.coverage is not None
        found.append(score.coverage)
    # On average over validation sets; the most probable label in any case adds a little.
    assert coverage - 0.015 < np.mean(found) < coverage + 1 / rows + 0.03


def test_threshold_is_the_rank_of_the_true_labels_probability() -> None:
    own = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15])
    logits = np.log(np.stack([own, 1 - own], axis=1)).astype(np.float32)
    targets = np.zeros(9, np.int64)
    assert fit_prediction_sets(logits, targets, 0.9).threshold == pytest.approx(0.15)
    assert fit_prediction_sets(logits, targets, 0.8).threshold == pytest.approx(0.2)
    assert fit_prediction_sets(logits, targets, 0.5).threshold == pytest.approx(0.5)


def test_too_few_rows_give_no_sets_and_say_how_many_it_takes() -> None:
    logits, targets = draw(30, 0)
    targets[:12] = UNLABELLED
    sets = fit_prediction_sets(logits, targets, 0.95)
    assert sets == PredictionSets(0.95, None, 18)
    assert "requires at least 19 validation rows, not 18" in sets.describe("topic")
    assert score_prediction_sets(sets, logits, targets).coverage is None
    logits, targets = draw(19, 0)
    assert fit_prediction_sets(logits, targets, 0.95).threshold is not None


def test_set_is_never_empty_and_has_the_labels_above_the_threshold() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.98, 0.01, 0.01]], np.float32))
    assert in_sets(logits, 0.3).tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert in_sets(logits, 0.99).sum(axis=1).tolist() == [1, 1, 1]


def test_temperature_divides_the_logits() -> None:
    logits = np.array([[4.0, 0.0]], np.float32)
    assert in_sets(logits, 0.2).tolist() == [[True, False]]
    assert in_sets(logits, 0.2, temperature=4.0).tolist() == [[True, True]]


def test_score_counts_labelled_rows_alone() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]], np.float32))
    sets = PredictionSets(0.9, 0.25, 100)
    score = score_prediction_sets(sets, logits, np.array([2, 0, UNLABELLED]))
    assert (score.coverage, score.size, score.single) == (0.5, 1.5, 0.5)
    assert json.loads(json.dumps(score.to_json()))["sets"]["threshold"] == 0.25

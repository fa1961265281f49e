from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.calibration import fit_temperature
from polyhead_training.evaluation.numbers import (
    OrdinalScore,
    RegressionScore,
    quick_score_ordinal,
    quick_score_regression,
    score_ordinal,
    score_regression,
)
from polyhead_training.evaluation.probabilities import (
    Floats,
    Integers,
    answers,
    confidences,
    expected_values,
    probabilities,
)
from scipy import stats
from sklearn import metrics  # type: ignore[import-untyped,unused-ignore]

STARS = ("1", "2", "3", "4", "5")


def _stars(rows: int, noise: float = 1.0) -> tuple[Floats, Integers]:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 5, rows)
    scores = targets + rng.normal(0, noise, rows)
    return 2 * (scores[:, None] - np.arange(4) - 0.5), targets


def _prices(rows: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(2)
    targets = rng.normal(1000, 5, rows)
    return (targets + rng.normal(0, 3, rows))[:, None], targets


def test_probabilities_are_differences_of_the_cumulative_ones() -> None:
    logits = np.log(np.array([[0.9, 0.6, 0.2]]) / np.array([[0.1, 0.4, 0.8]]))
    np.testing.assert_allclose(probabilities("ordinal", logits), [[0.1, 0.3, 0.4, 0.2]])
    np.testing.assert_allclose(expected_values(logits, [1, 2, 3, 4]), [0.1 + 0.6 + 1.2 + 0.8])


def test_logits_out_of_order_give_probabilities_that_are_not_negative() -> None:
    logits = np.array([[-1.0, 2.0, 0.5], [0.5, -3.0, 4.0]])
    found = probabilities("ordinal", logits)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    # No label between the first and the last has a probability, as none is above the first.
    np.testing.assert_allclose(found[0, 1:3], 0.0)
    assert answers("ordinal", logits).tolist() == [0, 1]
    assert np.isfinite(confidences("ordinal", logits, np.array([1, 2])).nll).all()


def test_prediction_is_the_median() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (200, 4))
    cumulative = probabilities("ordinal", logits).cumsum(axis=1)
    assert answers("ordinal", logits).tolist() == [int(np.argmax(row >= 0.5 - 1e-12)) for row in cumulative]


def test_prediction_at_one_half_is_the_lower_label() -> None:
    assert answers("ordinal", np.array([[0.0, -1.0]])).tolist() == [0]


def test_ordinal_metrics_match_scikit_learn() -> None:
    logits, targets = _stars(300)
    found, predicted = score_ordinal(STARS, logits, targets, intervals=False), answers("ordinal", logits)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert found.mae == pytest.approx(metrics.mean_absolute_error(targets, predicted))
    assert found.qwk == pytest.approx(metrics.cohen_kappa_score(targets, predicted, weights="quadratic"))
    values = expected_values(logits, [1, 2, 3, 4, 5])
    assert found.spearman == pytest.approx(stats.spearmanr(values, targets).statistic)


def test_errors_have_the_size_of_the_labels_numbers() -> None:
    # Predicts the label "10" in both rows, of which the second has the label "100".
    logits, targets = np.array([[1.0, -1.0]] * 2), np.array([1, 2])
    assert score_ordinal(("1", "10", "100"), logits, targets, intervals=False).mae == 45.0
    assert score_ordinal(("low", "medium", "high"), logits, targets, intervals=False).mae == 0.5


def test_ordinal_calibration_improves_by_the_temperature() -> None:
    logits, targets = _stars(2000, noise=2.0)
    fitted = fit_temperature("ordinal", 3 * logits, targets)
    before = score_ordinal(STARS, 3 * logits, targets, intervals=False)
    after = score_ordinal(STARS, 3 * logits, targets, temperature=fitted, intervals=False)
    assert fitted > 1.5
    assert (after.nll or 9) < (before.nll or 0)
    assert after.accuracy == before.accuracy


def test_regression_metrics_match_scikit_learn() -> None:
    outputs, targets = _prices(200)
    found = score_regression(outputs, targets, intervals=False)
    assert found.mae == pytest.approx(metrics.mean_absolute_error(targets, outputs))
    assert found.rmse == pytest.approx(metrics.root_mean_squared_error(targets, outputs[:, 0]))
    assert found.r2 == pytest.approx(metrics.r2_score(targets, outputs))
    assert found.pearson == pytest.approx(stats.pearsonr(targets, outputs[:, 0]).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(targets, outputs[:, 0]).statistic)
    assert len(found.points) == 200


def test_constant_prediction_has_no_correlation() -> None:
    found = score_regression(np.full((50, 1), 3.0), np.arange(50.0))
    assert (found.pearson, found.spearman) == (None, None)
    assert found.r2 is not None
    assert found.r2 < 0


@pytest.mark.parametrize("number", [2.0, 1 / 3])
def test_constant_targets_have_no_explained_variance(number: float) -> None:
    """Their squares may add up to a little variance by rounding, of which any error is a multiple."""
    found = score_regression(np.arange(49.0)[:, None], np.full(49, number, np.float32))
    assert (found.r2, found.pearson, found.intervals["r2"]) == (None, None, [])


def test_intervals_of_many_ordered_labels_take_little_memory() -> None:
    """The table of true and predicted labels of 101 percentages has 10,201 cells, in each of 1,000 resamples."""
    targets = np.random.default_rng(3).integers(0, 101, 2000)
    logits = 0.1 * (targets[:, None] - np.arange(100) - 0.5)
    score_ordinal(STARS, *_stars(10))  # imports
    tracemalloc.start()
    try:
        found = score_ordinal([str(number) for number in range(101)], logits, targets)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert found.qwk == 1.0


def test_rows_without_an_answer_are_ignored() -> None:
    outputs, targets = _prices(50)
    assert score_regression(np.vstack([outputs, [[7.0]]]), np.append(targets, np.nan)) == score_regression(
        outputs, targets
    )
    logits, stars = _stars(50)
    known = score_ordinal(STARS, logits, stars)
    assert score_ordinal(STARS, np.vstack([logits, logits[:1]]), np.append(stars, UNLABELLED)) == known


def test_score_without_answers_is_empty() -> None:
    assert score_regression(np.zeros((1, 1)), np.array([np.nan])) == RegressionScore(0)
    assert score_ordinal(STARS, np.zeros((1, 4)), np.array([UNLABELLED]), temperature=2.0) == OrdinalScore(0, 2.0)
    assert set(quick_score_ordinal(STARS, np.zeros((0, 4)), np.zeros(0, np.int64)).values()) == {None}


def test_intervals_contain_the_metrics() -> None:
    ordinal, regression = score_ordinal(STARS, *_stars(400)), score_regression(*_prices(400))
    for found, names in ((ordinal, ("mae", "qwk", "accuracy")), (regression, ("mae", "rmse", "r2"))):
        for name in names:
            low, high = found.intervals[name]
            assert low < getattr(found, name) < high


def test_quick_scores_agree_with_the_scores() -> None:
    ordinal, regression = score_ordinal(STARS, *_stars(100)), score_regression(*_prices(100))
    assert quick_score_ordinal(STARS, *_stars(100)) == pytest.approx(
        {"mae": ordinal.mae, "qwk": ordinal.qwk, "nll": ordinal.nll}
    )
    assert quick_score_regression(*_prices(100))["r2"] == regression.r2


def test_scores_are_json() -> None:
    for content in (score_ordinal(STARS, *_stars(40)).to_json(), score_regression(*_prices(40)).to_json()):
        assert json.loads(json.dumps(content, allow_nan=False)) == content

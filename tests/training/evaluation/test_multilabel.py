from __future__ import annotations

import json

import numpy as np
import pytest
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.calibration import best_thresholds, fit_temperature
from polyhead_training.evaluation.multilabel import (
    MultilabelScore,
    average_precisions,
    quick_score_multilabel,
    score_multilabel,
)
from polyhead_training.evaluation.probabilities import Floats, Integers, answers
from sklearn import metrics  # type: ignore[import-untyped,unused-ignore]

LABELS = ("a", "b", "c", "d")


def _noisy(rows: int, seed: int = 0, labels: int = 4) -> tuple[Floats, Integers]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, labels)) < np.linspace(0.05, 0.5, labels)).astype(np.int64)
    return (targets * 2 - 1.5 + rng.normal(0, 1.5, targets.shape)).round(1), targets


def _score(logits: Floats, targets: Integers, **options: object) -> MultilabelScore:
    return score_multilabel(LABELS, logits, targets, **{"thresholds": [0.5] * 4, **options})  # type: ignore[arg-type]


def test_metrics_match_scikit_learn() -> None:
    logits, targets = _noisy(300)
    found = _score(logits, targets, thresholds=[0.5, 0.3, 0.7, 0.5], intervals=False)
    predicted = answers("multilabel", logits, 1.0, [0.5, 0.3, 0.7, 0.5])
    assert found.micro_f1 == pytest.approx(metrics.f1_score(targets, predicted, average="micro"))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(targets, predicted, average="macro"))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert found.mean_average_precision == pytest.approx(
        metrics.average_precision_score(targets, logits, average="macro")
    )
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(targets, predicted)
    for index, label in enumerate(LABELS):
        one = found.labels[label]
        assert (one.precision, one.recall, one.f1) == pytest.approx((precision[index], recall[index], f1[index]))
        assert one.average_precision == pytest.approx(
            metrics.average_precision_score(targets[:, index], logits[:, index])
        )


def test_means_are_over_the_labels_that_occur() -> None:
    logits, targets = _noisy(100)
    targets[:, 0] = 0
    found = _score(logits, targets, intervals=False)
    assert found.labels["a"].average_precision is None
    assert found.macro_f1 == pytest.approx(np.mean([found.labels[label].f1 for label in "bcd"]))
    assert np.isnan(average_precisions(logits, targets)[0])


def test_baseline_is_the_most_frequent_label_alone() -> None:
    logits, targets = _noisy(200)
    always = np.zeros_like(targets)
    always[:, targets.sum(axis=0).argmax()] = 1
    expected = metrics.f1_score(targets, always, average="micro")
    assert _score(logits, targets, intervals=False).majority_baseline == pytest.approx(expected)


def test_rows_without_an_answer_are_ignored_and_empty_lists_are_not() -> None:
    logits, targets = _noisy(100)
    targets[:10] = 0
    hidden = np.vstack([targets, np.full((20, 4), UNLABELLED)])
    assert _score(np.vstack([logits, np.full((20, 4), 9.0)]), hidden) == _score(logits, targets)
    assert _score(logits, targets).rows == 100


def test_score_without_answers_is_empty() -> None:
    found = _score(np.zeros((2, 4)), np.full((2, 4), UNLABELLED), temperature=2.0)
    assert found == MultilabelScore(0, 2.0, (0.5,) * 4)
    assert set(quick_score_multilabel(np.zeros((2, 4)), np.full((2, 4), UNLABELLED)).values()) == {None}


def test_intervals_contain_the_metrics() -> None:
    found = _score(*_noisy(400))
    assert sorted(found.intervals) == ["accuracy", "macro_f1", "micro_f1"]
    for name, (low, high) in found.intervals.items():
        assert low < getattr(found, name) < high


def test_resampled_metrics_equal_the_metrics_of_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "polyhead_training.evaluation.metrics.resamples", lambda rows, seed: [np.ones((1, rows), np.float32)]
    )
    found = _score(*_noisy(60))
    for name, interval in found.intervals.items():
        assert interval == pytest.approx([getattr(found, name)] * 2, rel=1e-5)


def test_quick_score_agrees_with_the_score() -> None:
    logits, targets = _noisy(200)
    whole = _score(logits, targets, intervals=False)
    assert quick_score_multilabel(logits, targets) == pytest.approx(
        {"micro_f1": whole.micro_f1, "mean_average_precision": whole.mean_average_precision, "nll": whole.nll}
    )


def test_temperature_of_overconfident_decisions_is_above_one() -> None:
    logits, targets = _noisy(2000)
    fitted = fit_temperature("multilabel", 4 * logits, targets)
    assert fitted > 1.5
    assert (_score(4 * logits, targets, temperature=fitted).ece or 1) < (_score(4 * logits, targets).ece or 0)


def test_best_thresholds_have_the_highest_f1_of_each_label() -> None:
    logits, targets = _noisy(500)
    best = best_thresholds(logits, targets)
    found = _score(logits, targets, thresholds=best, intervals=False)
    for threshold in (0.1, 0.5, 0.9):
        other = _score(logits, targets, thresholds=[threshold] * 4, intervals=False)
        for label in LABELS:
            assert (found.labels[label].f1 or 0) >= (other.labels[label].f1 or 0)
    assert len(set(best)) > 1


def test_label_without_rows_keeps_the_middle_threshold() -> None:
    logits, targets = _noisy(50)
    targets[:, 2] = 0
    assert best_thresholds(logits, targets)[2] == 0.5


def test_score_is_json() -> None:
    content = _score(*_noisy(40)).to_json()
    assert json.loads(json.dumps(content, allow_nan=False))["labels"]["a"]["threshold"] == 0.5
    assert content["kind"] == "multilabel"

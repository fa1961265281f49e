"""Evaluation of a run: calibration is fitted on validation and applied to every split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_training.abstain_config import AbstainConfig
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.calibration import best_threshold, fit_temperature
from polyhead_training.evaluation.evaluate import Evaluation, HeadEvaluation, Split, evaluate_run, table, worst_errors
from polyhead_training.evaluation.metrics import HeadScore
from polyhead_training.evaluation.similarity import Correlations, Similarity
from polyhead_training.model_config import HeadConfig

TOPIC = HeadConfig(name="topic", kind="softmax", labels=("app", "billing", "support"))
SENTIMENT = HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive"))


def _split(rows: int, seed: int, unlabelled: Sequence[str] = ()) -> Split:
    rng = np.random.default_rng(seed)
    topics, sentiments = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    logits = {
        "topic": np.eye(3)[topics] * 4 + rng.normal(0, 3, (rows, 3)),
        "sentiment": (sentiments * 4 - 3)[:, None] + rng.normal(0, 3, (rows, 1)),
    }
    columns = {"topic": topics, "sentiment": sentiments}
    targets = {name: np.full(rows, UNLABELLED) if name in unlabelled else found for name, found in columns.items()}
    return Split(
        texts=[f"text {number}" for number in range(rows)],
        locations=[(Path("rows.jsonl"), number + 1) for number in range(rows)],
        targets=targets,
        logits={name: found.astype(np.float32) for name, found in logits.items()},
    )


def _evaluate(sentiment: HeadConfig = SENTIMENT, unlabelled: Sequence[str] = ()) -> Evaluation:
    splits = {"validation": _split(300, 0, unlabelled), "test": _split(200, 1)}
    return evaluate_run([TOPIC, sentiment], splits)


def _score(evaluated: HeadEvaluation) -> HeadScore:
    assert isinstance(evaluated.score, HeadScore)
    return evaluated.score


def test_every_split_uses_the_temperature_of_validation() -> None:
    found, validation = _evaluate(), _split(300, 0)
    fitted = fit_temperature("softmax", validation.logits["topic"], validation.targets["topic"])
    assert fitted > 1.2
    assert {heads["topic"].score.temperature for heads in found.splits.values()} == {fitted}
    assert found.temperatures["topic"] == fitted


def test_calibration_is_reported_before_and_after() -> None:
    evaluated = _evaluate().splits["validation"]["topic"]
    assert evaluated.uncalibrated is not None
    score = _score(evaluated)
    assert score.nll is not None
    assert score.nll < evaluated.uncalibrated.nll
    assert score.ece is not None
    assert score.ece < evaluated.uncalibrated.ece


def test_threshold_is_the_configured_one() -> None:
    found = _evaluate(SENTIMENT.model_copy(update={"threshold": 0.3}))
    assert found.thresholds == {"topic": None, "sentiment": 0.3}
    assert found.splits["test"]["sentiment"].score.threshold == 0.3


def test_best_threshold_is_fitted_on_validation() -> None:
    found, validation = _evaluate(SENTIMENT.model_copy(update={"threshold": "best"})), _split(300, 0)
    logits, targets = validation.logits["sentiment"], validation.targets["sentiment"]
    best = best_threshold(logits, targets, found.temperatures["sentiment"])
    assert best != 0.5
    assert found.thresholds["sentiment"] == found.splits["test"]["sentiment"].score.threshold == best


def test_best_threshold_is_reported_for_sigmoid_heads_on_validation_only() -> None:
    content = _evaluate().to_json()
    assert 0 < content["validation"]["sentiment"]["best_threshold"] < 1
    assert "best_threshold" not in content["validation"]["topic"]
    assert "best_threshold" not in content["test"]["sentiment"]


def test_without_validation_labels_nothing_is_fitted() -> None:
    found = _evaluate(SENTIMENT.model_copy(update={"threshold": "best"}), unlabelled=["topic", "sentiment"])
    assert found.temperatures == {"topic": 1.0, "sentiment": 1.0}
    assert found.thresholds["sentiment"] == 0.5
    evaluated = found.splits["validation"]["topic"]
    assert (evaluated.score.rows, _score(evaluated).accuracy, evaluated.uncalibrated, evaluated.errors) == (
        0,
        None,
        None,
        (),
    )
    assert found.splits["test"]["topic"].score.rows == 200


def test_splits_without_rows_have_empty_scores() -> None:
    found = evaluate_run([TOPIC, SENTIMENT], {"validation": _split(0, 0), "test": _split(0, 1)})
    assert {evaluated.score.rows for heads in found.splits.values() for evaluated in heads.values()} == {0}


def test_errors_are_wrong_predictions_with_location_most_confident_first() -> None:
    found, split = _evaluate().splits["test"]["topic"], _split(200, 1)
    assert len(found.errors) == 20
    probabilities = [error.probability or 0.0 for error in found.errors]
    assert probabilities == sorted(probabilities, reverse=True)
    for error in found.errors:
        row = error.line - 1
        assert (error.text, error.path) == (f"text {row}", "rows.jsonl")
        assert error.label == TOPIC.labels[split.targets["topic"][row]]  # type: ignore[index]
        assert error.answer == TOPIC.labels[split.logits["topic"][row].argmax()] != error.label  # type: ignore[index]


def _logits(*probabilities: float) -> NDArray[np.float64]:
    found = np.array(probabilities)[:, None]
    return np.asarray(np.log(found / (1 - found)))


def test_sigmoid_errors_have_the_probability_of_the_predicted_label() -> None:
    found = worst_errors(SENTIMENT, _logits(0.1, 0.8, 0.9, 0.3), np.array([1, 0, 1, UNLABELLED]))
    assert [(row, answer) for row, answer, _ in found] == [(0, 0), (1, 1)]
    assert [probability for _, _, probability in found] == pytest.approx([0.9, 0.8])


def test_errors_depend_on_threshold_and_temperature() -> None:
    logits = 2 * _logits(0.4, 0.3)
    found = worst_errors(SENTIMENT, logits, np.array([0, 0]), temperature=2.0, threshold=0.35)
    assert [(row, answer, round(probability, 6)) for row, answer, probability in found] == [(0, 1, 0.4)]


def test_evaluation_is_json_with_one_object_for_each_split_and_head() -> None:
    content = _evaluate().to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {split: sorted(heads) for split, heads in content.items()} == {
        "validation": ["sentiment", "topic"],
        "test": ["sentiment", "topic"],
    }
    assert sorted(content["test"]["topic"]) == [
        "accuracy",
        "balanced_accuracy",
        "brier",
        "confusion",
        "ece",
        "errors",
        "intervals",
        "labels",
        "macro_f1",
        "majority_baseline",
        "nll",
        "reliability",
        "rows",
        "temperature",
        "threshold",
        "uncalibrated",
    ]


def test_similarity_is_part_of_the_evaluation() -> None:
    similarity = Similarity(9, Correlations(0.8, 0.7), Correlations(0.75, 0.65))
    found = evaluate_run([TOPIC, SENTIMENT], {"validation": _split(9, 0)}, similarity)
    assert found.to_json()["similarity"] == similarity.to_json()
    assert "similarity" not in _evaluate().to_json()


def test_table_has_a_line_for_each_split_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = _evaluate(unlabelled=["topic"])
    header, _, *lines = [line.split() for line in table(found).splitlines()]
    assert header == ["split", "head", "rows", "accuracy", "macro-F1", "ECE", "majority"]
    assert lines[0] == ["validation", "topic", "0", "-", "-", "-", "-"]
    assert [line[:3] for line in lines[1:]] == [
        ["validation", "sentiment", "300"],
        ["test", "topic", "200"],
        ["test", "sentiment", "200"],
    ]
    score = _score(found.splits["test"]["topic"])
    low, high = score.intervals["accuracy"]
    figures = (score.macro_f1, score.ece, score.majority_baseline)
    assert lines[2][3:] == [
        f"{score.accuracy:.4f}",
        f"[{low:.4f},",
        f"{high:.4f}]",
        *(f"{value:.4f}" for value in figures),
    ]


def _abstaining(accuracy: float) -> Evaluation:
    splits = {"validation": _split(600, 0), "test": _split(400, 1)}
    return evaluate_run([TOPIC, SENTIMENT], splits, abstain={"topic": AbstainConfig(accuracy=accuracy)})


def test_promise_of_validation_is_scored_on_every_split() -> None:
    found = _abstaining(0.8)
    assert list(found.abstentions) == ["topic"]
    promise = found.abstentions["topic"].promise
    assert 0 < (promise.threshold or 0) < 1
    for split, heads in found.splits.items():
        abstention = heads["topic"].abstention
        assert abstention is not None
        assert abstention.promise == promise, split
        assert (abstention.accuracy or 0) >= 0.8
        assert heads["sentiment"].abstention is None
    content = found.to_json()["test"]
    assert content["topic"]["abstention"]["promise"]["accuracy"] == 0.8
    assert "abstention" not in content["sentiment"]


def test_promise_that_cannot_be_kept_ends_nothing() -> None:
    found = _abstaining(0.9999)
    assert found.abstentions["topic"].promise.threshold is None
    assert found.splits["test"]["topic"].abstention is not None

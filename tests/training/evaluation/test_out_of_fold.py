from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.evaluation.evaluate import Split, evaluate_run
from polyhead_training.evaluation.out_of_fold import fold_scores
from polyhead_training.model_config import HeadConfig

FOLDS = 5
LABELS = tuple(f"t{number}" for number in range(10))
HEADS = (
    HeadConfig(name="tags", kind="multilabel", labels=LABELS, threshold="best"),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes"), threshold="best"),
    HeadConfig(name="price", kind="regression"),
)


def noise(rows: int) -> tuple[Split, list[int]]:
    """Predictions that have nothing to do with the answers, and the fold of each row."""
    random = np.random.default_rng(0)
    targets = {
        "tags": (random.random((rows, len(LABELS))) < 0.08).astype(np.int64),
        "sentiment": random.integers(0, 2, rows),
        "price": random.normal(size=rows),
    }
    logits = {
        name: random.normal(size=(rows, width)).astype(np.float32)
        for name, width in (("tags", len(LABELS)), ("sentiment", 1), ("price", 1))
    }
    # As rare as the labels are.
    logits["tags"] -= 2.5
    split = Split(["text"] * rows, [(Path("a.jsonl"), 1)] * rows, targets, logits)
    return split, [number % FOLDS for number in range(rows)]


def test_fold_is_scored_with_what_is_fitted_on_the_others() -> None:
    split, assigned = noise(200)
    found = fold_scores(HEADS, split, assigned, FOLDS)
    assert len(found) == FOLDS
    others = split.select([number for number in range(200) if assigned[number] != 2])
    own = split.select([number for number in range(200) if assigned[number] == 2])
    expected = evaluate_run(HEADS, {"validation": others, "test": own}).to_json()["test"]
    for name, metrics in found[2]["validation"].items():
        assert metrics["rows"] == 40
        assert {key: expected[name][key] for key, value in metrics.items() if isinstance(value, float)} == {
            key: value for key, value in metrics.items() if isinstance(value, float)
        }


def test_predictions_by_chance_score_no_better_than_chance() -> None:
    split, assigned = noise(200)
    parts = [split.select([n for n in range(200) if assigned[n] == fold]) for fold in range(FOLDS)]
    fitted = [evaluate_run(HEADS, {"validation": one}).to_json()["validation"]["tags"]["macro_f1"] for one in parts]
    found = [one["validation"]["tags"]["macro_f1"] for one in fold_scores(HEADS, split, assigned, FOLDS)]
    # A head that gives each text every label has an F1 of 0.15 for each.
    assert statistics.fmean(found) == pytest.approx(0.15, abs=0.03)
    assert statistics.fmean(fitted) > 0.2


def test_fold_without_answers_has_no_metrics() -> None:
    split, assigned = noise(50)
    split.targets["sentiment"][np.array(assigned) == 0] = UNLABELLED
    first, second, *_ = fold_scores(HEADS, split, assigned, FOLDS)
    assert first["validation"]["sentiment"]["accuracy"] is None
    assert second["validation"]["sentiment"]["accuracy"] is not None

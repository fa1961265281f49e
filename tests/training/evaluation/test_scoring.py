from __future__ import annotations

from typing import Any

import pytest
from polyhead_training.evaluation.scoring import selection_score

HEADS: dict[str, Any] = {
    "topic": {"macro_f1": 0.9, "accuracy": 1.0},
    "tags": {"kind": "multilabel", "mean_average_precision": 0.5, "macro_f1": 1.0},
    "stars": {"kind": "ordinal", "qwk": 0.4, "accuracy": 1.0},
    "price": {"kind": "regression", "r2": 0.2, "mae": 3.0},
    "unlabelled": {"macro_f1": None},
}


def test_selection_score_is_the_mean_of_each_kinds_own() -> None:
    found = selection_score({"validation": HEADS}, teaches_embedding=False)
    assert found == pytest.approx((0.9 + 0.5 + 0.4 + 0.2) / 4)


@pytest.mark.parametrize(("teaches_embedding", "expected"), [(True, 0.8), (False, 0.9)])
def test_correlation_counts_if_the_embedding_is_taught(teaches_embedding: bool, expected: float) -> None:
    evaluation = {"validation": {"topic": HEADS["topic"]}, "similarity": {"spearman_after": 0.7}}
    assert selection_score(evaluation, teaches_embedding=teaches_embedding) == pytest.approx(expected)


def test_without_labelled_rows_there_is_no_score() -> None:
    assert selection_score({"validation": {"topic": {"macro_f1": None}}}, teaches_embedding=True) is None

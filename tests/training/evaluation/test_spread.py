from __future__ import annotations

from typing import Any

import pytest
from polyhead_training.evaluation.spread import spread


def run(accuracy: float | None, **others: Any) -> dict[str, Any]:
    head = {"rows": 5, "temperature": 1.5, "accuracy": accuracy, "confusion": [[1]], **others}
    return {"validation": {"topic": head}, "similarity": {"pairs": 3, "spearman_after": 0.5}}


def test_mean_and_sample_deviation_of_each_metric() -> None:
    found = spread([run(0.5), run(0.7), run(0.9)])["validation"]["topic"]
    assert found == {
        "accuracy": {
            "mean": pytest.approx(0.7), "sd": pytest.approx(0.2), "min": 0.5, "max": 0.9, "values": [0.5, 0.7, 0.9]
        }
    }  # fmt: skip


def test_undefined_values_are_skipped() -> None:
    found = spread([run(0.5, ece=None), run(None, ece=None)])["validation"]["topic"]
    assert found["accuracy"]["values"] == [0.5, None]
    assert (found["accuracy"]["mean"], found["accuracy"]["sd"]) == (0.5, None)
    assert "ece" not in found


def test_similarity_has_metrics_without_heads() -> None:
    assert spread([run(0.5), run(0.5)])["similarity"]["spearman_after"]["mean"] == 0.5


def test_retrieval_has_the_metrics_of_the_whole_embedding_after_training() -> None:
    def retrieval(ndcg: float) -> dict[str, Any]:
        forms = [{"dimensions": size, "before": {"map": 0.1}, "after": {"map": ndcg * size}} for size in (2, 1)]
        return {"validation": {}, "retrieval": {"help": {"queries": 3, "documents": 9, "results": forms}}}

    assert spread([retrieval(0.25), retrieval(0.35)])["retrieval"]["help"]["map"]["values"] == [0.5, 0.7]

"""Correlations of cosine similarities with human scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from polyhead_training.evaluation.similarity import Correlations, Similarity, correlations


def _turned(degrees: list[float], length: float = 1.0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    radians = np.radians(degrees)
    return length * np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_spearman_depends_on_the_order_only() -> None:
    first, second = _turned([0, 0, 0, 0]), _turned([80, 60, 40, 0])
    found = correlations(first, second, np.array([0.0, 1.0, 2.0, 100.0]))
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson == pytest.approx(np.corrcoef(np.cos(np.radians([80, 60, 40, 0])), [0, 1, 2, 100])[0, 1])
    assert found.pearson != pytest.approx(1.0, abs=0.1)


def test_opposite_order_is_minus_one() -> None:
    found = correlations(_turned([0, 0]), _turned([10, 90]), np.array([1.0, 5.0]))
    assert found.spearman == pytest.approx(-1.0)
    assert found.pearson == pytest.approx(-1.0)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1, 2, 3, 4 against 1, 2.5, 2.5, 4.
    found = correlations(_turned([0, 0, 0, 0]), _turned([80, 60, 40, 0]), np.array([0.0, 3.0, 3.0, 5.0]))
    assert found.spearman == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1])


def test_correlations_do_not_depend_on_vector_norms() -> None:
    first, second, scores = _turned([0, 10, 20]), _turned([5, 70, 30]), np.array([3.0, 0.5, 2.0])
    assert correlations(7 * first, second, scores).pearson == pytest.approx(correlations(first, second, scores).pearson)


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [1.0]])
def test_constant_scores_have_no_correlation(scores: list[float]) -> None:
    angles = [0.0, 20.0, 50.0][: len(scores)]
    assert correlations(_turned([0] * len(scores)), _turned(angles), np.array(scores)) == Correlations(None, None)


def test_similarity_is_flat_json() -> None:
    content = Similarity(3, before=Correlations(0.8, 0.7), after=Correlations(0.6, None)).to_json()
    assert json.loads(json.dumps(content)) == {
        "pairs": 3,
        "spearman_before": 0.8,
        "spearman_after": 0.6,
        "pearson_before": 0.7,
        "pearson_after": None,
    }

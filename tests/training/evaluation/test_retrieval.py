"""Retrieval metrics against values computed by hand, and against a plain implementation over sorted rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from polyhead_training.evaluation.retrieval import ranks, retrieval_scores


def vectors(similarities: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Unit vectors whose cosines with (1, 0) are these."""
    return np.array([[one, math.sqrt(1 - one * one)] for one in similarities], dtype=np.float32)


QUERY = vectors([1.0])


def test_scores_of_one_query_by_hand() -> None:
    # Ranking: documents 2, 0, 3, 1. Relevant: 0 (rank 2, score 3) and 1 (rank 4, score 1).
    found = retrieval_scores(QUERY, vectors([0.8, 0.1, 0.9, 0.5]), [{0: 3.0, 1: 1.0}])
    dcg, ideal = 3 / math.log2(3) + 1 / math.log2(5), 3 / math.log2(2) + 1 / math.log2(3)
    assert found.ndcg_at_10 == pytest.approx(dcg / ideal)
    assert found.map == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert (found.recall_at_10, found.recall_at_100) == (1.0, 1.0)


def test_documents_beyond_the_cut_do_not_count() -> None:
    documents = vectors([1 - 0.005 * number for number in range(150)])
    found = retrieval_scores(QUERY, documents, [{9: 1.0, 10: 1.0, 99: 1.0, 100: 1.0}])
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 5))
    assert found.ndcg_at_10 == pytest.approx(1 / math.log2(11) / ideal)
    assert (found.recall_at_10, found.recall_at_100) == (0.25, 0.75)
    assert found.map == pytest.approx((1 / 10 + 2 / 11 + 3 / 100 + 4 / 101) / 4)


def test_more_relevant_documents_than_the_cut_can_hold() -> None:
    found = retrieval_scores(
        QUERY, vectors([1 - 0.01 * number for number in range(40)]), [dict.fromkeys(range(20), 1.0)]
    )
    assert found.ndcg_at_10 == pytest.approx(1.0)
    assert found.recall_at_10 == pytest.approx(0.5)


def test_equal_documents_rank_in_their_order() -> None:
    similarities = np.array([0.5, 0.7, 0.5, 0.5], dtype=np.float32)
    assert ranks(similarities, np.array([3, 0, 1])).tolist() == [4, 2, 1]


def test_scores_equal_those_of_sorted_rankings(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(7, 5)), rng.normal(size=(300, 5))
    queries, documents = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, documents))
    relevance = [
        {int(document): float(rng.integers(1, 4)) for document in rng.choice(300, size, replace=False)}
        for size in (1, 2, 3, 12, 40, 5, 1)
    ]
    expected = []
    for query, relevant in zip(queries, relevance, strict=True):
        order = sorted(range(300), key=lambda document: -float(query @ documents[document]))
        gains = [relevant.get(document, 0.0) for document in order]
        best = sorted(relevant.values(), reverse=True)
        dcg, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(found[:10])) for found in (gains, best))
        hits = [position for position, gain in enumerate(gains, start=1) if gain]
        precision = sum(count / position for count, position in enumerate(hits, start=1)) / len(hits)
        recall = [sum(1 for position in hits if position <= cut) / len(hits) for cut in (10, 100)]
        expected.append([dcg / ideal, precision, *recall])
    # In blocks of two queries.
    monkeypatch.setattr("polyhead_training.evaluation.retrieval._MAX_SIMILARITIES", 600)
    found = retrieval_scores(queries.astype(np.float32), documents.astype(np.float32), relevance)
    means = [found.ndcg_at_10, found.map, found.recall_at_10, found.recall_at_100]
    assert means == pytest.approx(np.mean(expected, axis=0))

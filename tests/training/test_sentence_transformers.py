"""The losses and the retrieval metrics against those of sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from polyhead_training.evaluation.retrieval import retrieval_scores
from polyhead_training.loop.embedding_losses import Targets, cosent, cosine, ranking, symmetric_ranking
from torch.nn import functional

pytestmark = pytest.mark.slow


def test_losses_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer import losses

    generator = torch.Generator().manual_seed(0)
    embeddings = functional.normalize(torch.randn(16, 3, 24, generator=generator), dim=-1)
    scores = torch.randint(0, 6, (16,), generator=generator) / 5
    groups = torch.arange(48).reshape(16, 3)
    anchors, positives, negatives = embeddings.unbind(dim=1)
    model: Any = None
    symmetric = losses.MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    pairs, triplets = Targets(scores, groups[:, :2]), Targets(scores, groups)
    for found, loss, columns in (
        (cosent(embeddings[:, :2], pairs), losses.CoSENTLoss(model), [anchors, positives]),
        (cosine(embeddings[:, :2], pairs), losses.CosineSimilarityLoss(model), [anchors, positives]),
        (ranking(embeddings[:, :2], pairs), losses.MultipleNegativesRankingLoss(model), [anchors, positives]),
        (ranking(embeddings, triplets), losses.MultipleNegativesRankingLoss(model), [anchors, positives, negatives]),
        (symmetric_ranking(embeddings[:, :2], pairs), symmetric, [anchors, positives]),
        (symmetric_ranking(embeddings, triplets), symmetric, [anchors, positives, negatives]),
    ):
        assert found.item() == pytest.approx(loss.compute_loss_from_embeddings(columns, scores).item(), rel=1e-5)


def test_retrieval_scores_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(count, 16)).astype(np.float32) for count in (40, 500))
    queries, documents = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, documents))
    relevance = [{int(one): 1.0 for one in rng.choice(500, rng.integers(1, 12), replace=False)} for _ in range(40)]
    evaluator: Any = InformationRetrievalEvaluator(
        {str(number): "query" for number in range(40)},
        {str(number): "document" for number in range(500)},
        {str(number): {str(one) for one in found} for number, found in enumerate(relevance)},
        map_at_k=[500],
        ndcg_at_k=[10],
        precision_recall_at_k=[10, 100],
    )
    ranked = [
        sorted(({"corpus_id": str(number), "score": float(one)} for number, one in enumerate(row)), key=_minus_score)
        for row in queries @ documents.T
    ]
    expected = evaluator.compute_metrics(ranked)
    found = retrieval_scores(queries, documents, relevance)
    assert found.ndcg_at_10 == pytest.approx(expected["ndcg@k"][10])
    assert found.map == pytest.approx(expected["map@k"][500])
    assert found.recall_at_10 == pytest.approx(expected["recall@k"][10])
    assert found.recall_at_100 == pytest.approx(expected["recall@k"][100])


def _minus_score(found: dict[str, Any]) -> float:
    return -float(found["score"])

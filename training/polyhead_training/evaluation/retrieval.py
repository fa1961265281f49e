"""Quality of retrieval: ranks of the relevant documents by cosine similarity, and the metrics of these ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encodings import Form
from .probabilities import Floats

# Ranks up to which nDCG and recall count, as in BEIR (Thakur et al., arXiv 2104.08663).
_NDCG_AT = 10
_RECALL_AT = (10, 100)
# Similarities held at once, 200 MB of float32.
_MAX_SIMILARITIES = 50_000_000


@dataclass(frozen=True)
class RetrievalScores:
    """Means over the queries, 0 to 1.

    Attributes:
        ndcg_at_10: Normalized discounted cumulative gain of the first 10 documents; the gain is the relevance score
            and the discount log2(rank + 1), as in trec_eval.
        map: Mean average precision over the whole ranking.
        recall_at_10: Share of the relevant documents among the first 10.
        recall_at_100: Share of the relevant documents among the first 100.
    """

    ndcg_at_10: float
    map: float
    recall_at_10: float
    recall_at_100: float


@dataclass(frozen=True)
class RetrievalResult:
    """Scores of one form of the embedding, before and after training."""

    form: Form
    before: RetrievalScores
    after: RetrievalScores

    def to_json(self) -> dict[str, Any]:
        """Returns an element of ``results`` in ``evaluation.json``."""
        return {**self.form._asdict(), "before": asdict(self.before), "after": asdict(self.after)}


@dataclass(frozen=True)
class Retrieval:
    """Evaluation of a retrieval task.

    Attributes:
        queries: Number of queries.
        documents: Number of documents.
        results: Scores by form, the whole embedding as float32 first.
    """

    queries: int
    documents: int
    results: Sequence[RetrievalResult]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``evaluation.json`` for this task."""
        results = [result.to_json() for result in self.results]
        return {"queries": self.queries, "documents": self.documents, "results": results}


def retrieval_scores(queries: Floats, documents: Floats, relevance: Sequence[Mapping[int, float]]) -> RetrievalScores:
    """Ranks the documents for each query by cosine similarity and scores the ranking.

    Args:
        queries: (Q, E) embeddings of length 1; at least one.
        documents: (D, E) embeddings of length 1.
        relevance: For each query, the score of each of its relevant documents, by number.
    """
    size = max(1, _MAX_SIMILARITIES // max(1, len(documents)))
    found = []
    for start in range(0, len(queries), size):
        similarities = queries[start : start + size] @ documents.T  # (block, D)
        for row, relevant in zip(similarities, relevance[start : start + size], strict=True):
            numbers = np.fromiter(relevant.keys(), dtype=np.int64)
            gains = np.fromiter(relevant.values(), dtype=np.float64)
            found.append(_query_scores(ranks(row, numbers), gains))
    return RetrievalScores(*(float(mean) for mean in np.mean(found, axis=0)))


def ranks(similarities: Floats, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rank of each of some documents, counted from 1; equal documents rank in their order.

    Args:
        similarities: (D,) similarity of every document.
        numbers: (R,) the documents.
    """
    own = similarities[numbers, None]  # (R, 1)
    before = (similarities > own) | (
        (similarities == own) & (np.arange(len(similarities)) < numbers[:, None])
    )  # (R, D)
    return np.asarray(before.sum(axis=1) + 1)


def _query_scores(found: NDArray[np.int64], gains: NDArray[np.float64]) -> list[float]:
    """Computes nDCG@10, average precision, recall@10 and recall@100 of one query.

    Args:
        found: (R,) ranks of the relevant documents.
        gains: (R,) their relevance scores.
    """
    best = np.arange(1, len(gains) + 1)  # (R,)
    dcg = (gains / np.log2(found + 1))[found <= _NDCG_AT].sum()
    ideal = (np.sort(gains)[::-1] / np.log2(best + 1))[:_NDCG_AT].sum()
    precision = (best / np.sort(found)).mean()
    return [dcg / ideal, precision, *((found <= rank).mean() for rank in _RECALL_AT)]

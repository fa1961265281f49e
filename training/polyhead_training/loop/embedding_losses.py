"""Losses that train the sentence embedding, each a function of the embeddings of a whole step.

Shapes: R rows, C texts of a row (two, or three for triplets), E dimensions::

    embeddings (R, C, E), scores (R,), groups (R, C) --cosent, cosine, ranking or symmetric_ranking--> scalar
    matryoshka: the mean of a loss over the embeddings and their first N dimensions, for each N
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polyhead_training.embedding_config import EmbeddingLoss

# Factor of the cosines in the logits: 20 is that of sentence-transformers, a temperature of 0.05.
SCALE = 20.0


class Targets(NamedTuple):
    """What the rows of a step teach.

    Attributes:
        scores: (R,) float32 similarities, 0 to 1; only ``cosent`` and ``cosine`` read them.
        groups: (R, C) int64 numbers that are equal for equal texts; only the losses of ranking read them.
    """

    scores: Tensor
    groups: Tensor


def cosent(embeddings: Tensor, targets: Targets) -> Tensor:
    """Computes CoSENT: log(1 + the sum of exp(20 (cos_j - cos_i)) over all rows i, j with score_i above score_j).

    The order of the cosines learns to follow that of the scores (Su, https://kexue.fm/archives/8847;
    sentence-transformers' CoSENTLoss).

    Args:
        embeddings: (R, 2, E) embeddings of length 1.
        targets: Scores of the rows.
    """
    cosines = SCALE * (embeddings[:, 0] * embeddings[:, 1]).sum(dim=-1)  # (R,)
    differences = cosines[:, None] - cosines[None, :]  # (R, R), positive where row i is nearer than row j
    wrong = targets.scores[:, None] < targets.scores[None, :]  # (R, R), i is less similar than j
    return functional.pad(differences[wrong], (1, 0)).logsumexp(dim=0)


def cosine(embeddings: Tensor, targets: Targets) -> Tensor:
    """Computes the mean squared difference of the rows' cosines and scores.

    It is sentence-transformers' CosineSimilarityLoss (Reimers and Gurevych, arXiv 1908.10084, section 3).

    Args:
        embeddings: (R, 2, E) embeddings of length 1.
        targets: Scores of the rows.
    """
    cosines = (embeddings[:, 0] * embeddings[:, 1]).sum(dim=-1)  # (R,)
    return functional.mse_loss(cosines, targets.scores)


def ranking(embeddings: Tensor, targets: Targets) -> Tensor:
    """Computes multiple-negatives ranking: the cross-entropy of finding each anchor's positive among the step's texts.

    The candidates of an anchor are its positive, and the positives and negatives of all rows (Henderson et al., arXiv
    1705.00652, section 4.4; with hard negatives as in DPR, arXiv 2004.04906, section 3.2; sentence-transformers'
    MultipleNegativesRankingLoss). A text is no negative of an anchor if it equals the anchor or its positive, or if it
    is the positive of an equal anchor.

    Args:
        embeddings: (R, C, E) embeddings of length 1: anchors, positives and, for C = 3, hard negatives.
        targets: Groups of equal texts.
    """
    return _diagonal_cross_entropy(_ranking_logits(embeddings, targets))


def symmetric_ranking(embeddings: Tensor, targets: Targets) -> Tensor:
    """Computes the mean of ``ranking`` and of the cross-entropy of finding each positive's anchor among all anchors.

    It is sentence-transformers' MultipleNegativesSymmetricRankingLoss, which its MultipleNegativesRankingLoss computes
    with the directions query_to_doc and doc_to_query, per direction (Günther et al., arXiv 2310.19923). Hard negatives
    are candidates of the anchors alone. An anchor is no negative of a positive if it equals that positive or its
    anchor, or if its own positive is equal to that positive.

    Args:
        embeddings: (R, C, E) embeddings of length 1: anchors, positives and, for C = 3, hard negatives.
        targets: Groups of equal texts.
    """
    logits = _ranking_logits(embeddings, targets)  # (R, (C-1) R)
    # An anchor is no negative of a positive exactly if the positive is none of the anchor: one mask is both.
    return (_diagonal_cross_entropy(logits) + _diagonal_cross_entropy(logits[:, : len(logits)].T)) / 2


def _ranking_logits(embeddings: Tensor, targets: Targets) -> Tensor:
    """Returns the logits of each anchor's candidates, (R, (C-1) R): its positive is on the diagonal."""
    anchors, candidates = embeddings[:, 0], embeddings[:, 1:].transpose(0, 1).flatten(0, 1)  # (R, E), ((C-1) R, E)
    logits = SCALE * anchors @ candidates.T  # (R, (C-1) R)
    return logits.masked_fill(_false_negatives(targets.groups), -torch.inf)


def _diagonal_cross_entropy(logits: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the candidates on the diagonal of (R, N) logits."""
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _false_negatives(groups: Tensor) -> Tensor:
    """Returns which candidates (columns) are no negatives of an anchor (rows), (R, (C-1) R), its positive excepted."""
    anchor, positive, candidates = (
        groups[:, :1],
        groups[:, 1:2],
        groups[:, 1:].T.flatten(),
    )  # (R, 1), (R, 1), ((C-1) R,)
    equal = (candidates == positive) | (candidates == anchor)  # (R, (C-1) R)
    own = torch.eye(len(groups), dtype=torch.bool, device=groups.device)  # (R, R), each anchor's positive
    equal[:, : len(groups)] |= anchor == groups[:, 0]
    equal[:, : len(groups)] &= ~own
    return equal


LOSSES: Mapping[EmbeddingLoss, Callable[[Tensor, Targets], Tensor]] = {
    "cosent": cosent,
    "cosine": cosine,
    "ranking": ranking,
    "symmetric_ranking": symmetric_ranking,
}


def matryoshka(loss: EmbeddingLoss, embeddings: Tensor, targets: Targets, dimensions: Sequence[int]) -> Tensor:
    """Computes the mean of a loss over the whole embeddings and their first N dimensions, for each N.

    A cut embedding is scaled to length 1 again (Kusupati et al., arXiv 2205.13147, section 3).

    Args:
        loss: The loss.
        embeddings: (R, C, E) embeddings, of any length.
        targets: What the rows teach.
        dimensions: The numbers N of dimensions, besides E.
    """
    size = embeddings.shape[-1]
    sizes = sorted({size, *dimensions})
    parts = [LOSSES[loss](functional.normalize(embeddings[..., :count], dim=-1), targets) for count in sizes]
    return torch.stack(parts).mean()

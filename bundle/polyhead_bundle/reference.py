"""What the model answers on its validation texts, with which the traffic of a server can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HeadReference:
    """What a head answers on the validation texts.

    ``answers`` are shares of the texts: by predicted label, in the order of the labels; of a multilabel head, to which
    each label applies; of a regression head, whose value lies between two neighboring ``edges``, of which the first and
    the last are the lowest and the highest value. ``confidence`` are the shares in ten equal ranges of the probability
    of the predicted label; empty for multilabel and regression heads. ``edges`` is empty for other than regression
    heads.
    """

    answers: tuple[float, ...]
    confidence: tuple[float, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """What the model reads and answers on its validation texts.

    ``rows`` is their number. ``tokens`` are the shares of texts by their tokens before truncation: up to 4, up to 8, up
    to 16, and so on. ``truncated`` is the share of texts that are truncated, ``unknown_tokens`` that of tokens which
    the tokenizer does not know. ``embedding_mean`` and ``embedding_spread`` are mean and standard deviation of each
    dimension of the embeddings; empty for a bundle without novelty. The novelty of these texts is spread evenly from 0
    to 1.
    """

    rows: int
    heads: dict[str, HeadReference]
    tokens: tuple[float, ...]
    truncated: float
    unknown_tokens: float
    embedding_mean: tuple[float, ...]
    embedding_spread: tuple[float, ...]


def check_reference(found: Reference, labels: Mapping[str, int], dimensions: int) -> None:
    """Rejects a reference that does not fit the model.

    Args:
        found: The reference.
        labels: Number of labels of each head, in the model's order.
        dimensions: Those of the embedding.

    Raises:
        ValueError: Names the field and what is wrong with it.
    """
    if found.rows < 1:
        raise ValueError(f"reference.rows: must be at least 1; got {found.rows}")
    if set(found.heads) != set(labels):
        raise ValueError("reference.heads: must name every head")
    for name, head in found.heads.items():
        where = f"reference.heads.{name}"
        if len(head.answers) != (labels[name] or max(len(head.edges) - 1, 0)):
            raise ValueError(f"{where}.answers: has {len(head.answers)} shares")
        if list(head.edges) != sorted(head.edges):
            raise ValueError(f"{where}.edges: must rise")
        _check_shares(where, (*head.answers, *head.confidence))
    _check_shares("reference", (*found.tokens, found.truncated, found.unknown_tokens))
    for field, values in (("mean", found.embedding_mean), ("spread", found.embedding_spread)):
        if len(values) not in {0, dimensions}:
            raise ValueError(f"reference.embedding_{field}: has {len(values)} numbers for {dimensions} dimensions")


def _check_shares(where: str, shares: Sequence[float]) -> None:
    if not all(0 <= share <= 1 and math.isfinite(share) for share in shares):
        raise ValueError(f"{where}: has a share that is not between 0 and 1")

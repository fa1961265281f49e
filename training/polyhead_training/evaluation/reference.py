"""The reference of a run: what the model reads and answers on its validation texts.

A server may compare its traffic with it. It holds shares and moments alone, no texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import ABSTAINING_KINDS

from .novelty import NoveltyModel
from .probabilities import Floats, Threshold, answers
from .selective import confidence_of

# Ranges of the confidence, and of the values of a regression head.
_RANGES = 10
_FIRST_TOKENS = 4
# Digits of a number: more would say nothing about a sample.
_DIGITS = 6


def describe_validation(
    heads: Sequence[HeadConfig],
    logits: Mapping[str, Floats],
    temperatures: Mapping[str, float],
    thresholds: Mapping[str, Any],
    *,
    tokens: Sequence[int],
    max_tokens: int,
    unknown_tokens: float,
    novelty: NoveltyModel | None,
) -> dict[str, Any] | None:
    """Describes the validation texts, in the form of ``run.json``.

    Args:
        heads: The heads with their labels.
        logits: (N, outputs) of each head, by its name.
        temperatures: Divisor of each head's logits.
        thresholds: Thresholds of sigmoid and multilabel heads.
        tokens: Tokens of each text before truncation.
        max_tokens: Tokens of a text that the model reads.
        unknown_tokens: Share of the tokens that the tokenizer does not know.
        novelty: Holds the moments of the embeddings; None for none.

    Returns:
        The reference; None without texts.
    """
    rows = min([len(tokens), *(len(values) for values in logits.values())])
    if not rows:
        return None
    counts = np.asarray(tokens)
    edges = [_FIRST_TOKENS]
    while edges[-1] < counts.max():
        edges.append(2 * edges[-1])
    return {
        "rows": len(tokens),
        "heads": {
            head.name: _head(head, logits[head.name], temperatures[head.name], thresholds[head.name] or 0.5)
            for head in heads
        },
        "tokens": _shares(np.searchsorted(edges, counts), len(edges)),
        "truncated": round(float((counts > max_tokens).mean()), _DIGITS),
        "unknown_tokens": round(unknown_tokens, _DIGITS),
        "embedding_mean": [] if novelty is None else _rounded(novelty.mean),
        "embedding_spread": [] if novelty is None else _rounded(novelty.spread),
    }


def _head(head: HeadConfig, logits: Floats, temperature: float, threshold: Threshold) -> dict[str, Any]:
    predicted = answers(head.kind, logits, temperature, threshold)
    edges: list[float] = []
    if head.kind == "regression":
        edges = np.quantile(predicted, np.linspace(0, 1, _RANGES + 1)).tolist()
        places = np.searchsorted(edges[1:-1], predicted, side="right")
        found = _shares(places, _RANGES)
    elif head.kind == "multilabel":
        found = _rounded(predicted.mean(axis=0))
    else:
        found = _shares(predicted, len(head.labels or ()))
    confidence: list[float] = []
    if head.kind in ABSTAINING_KINDS:
        values = confidence_of(head.kind, logits, temperature, threshold)
        confidence = _shares(np.minimum(values * _RANGES, _RANGES - 1).astype(np.int64), _RANGES)
    return {"answers": found, "confidence": confidence, "edges": edges}


def _shares(places: NDArray[Any], count: int) -> list[float]:
    return _rounded(np.bincount(places, minlength=count) / len(places))


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]

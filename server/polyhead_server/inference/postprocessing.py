"""Converts logits to probabilities, by the declared kind of each head and never by the number of its labels.

Softmax and sigmoid exist twice in the project: here, and in ``polyhead_training.evaluation.probabilities``, which the
export gate uses. The server imports neither training nor export.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from .types import ModelOutput


def probabilities(head: bundle.Head, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Converts a head's logits to probabilities.

    Args:
        head: Gives the kind, and the temperature that divides the logits (Guo et al. 2017, arXiv 1706.04599).
        logits: (B, outputs) float32.

    Returns:
        (B, outputs) float32: softmax over the outputs, or the sigmoid of each.
    """
    scaled = logits / np.float32(head.temperature)  # (B, outputs)
    if head.kind == "sigmoid":
        # exp of a large positive number overflows, so each sign has its own form of the same function.
        small = np.exp(-np.abs(scaled))  # (B, 1)
        return np.asarray(np.where(scaled >= 0, 1 / (1 + small), small / (1 + small)), dtype=np.float32)
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))  # (B, labels)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def pool_windows(
    heads: Sequence[bundle.Head], windows: Sequence[ModelOutput], tokens: Sequence[int], *, normalized: bool
) -> ModelOutput:
    """Pools the outputs of a text's windows into one output, each window weighted by its tokens.

    The embedding is the mean of the windows' embeddings, scaled to length 1 where ``normalized``. A head's
    probabilities are those of the mean of the windows' logits. The logits themselves are not needed: up to a constant
    they are the logarithms of the probabilities (logarithmic opinion pool, Genest and Zidek 1986, section 3).

    Args:
        heads: Heads in the model's order.
        windows: Outputs of the W windows.
        tokens: (W,) tokens of each window.
        normalized: Whether embeddings have length 1.
    """
    weights = np.asarray(tokens, dtype=np.float32) / np.float32(sum(tokens))  # (W,)
    embedding = weights @ np.stack([window.embedding for window in windows])  # (dimensions,)
    if normalized:
        embedding = embedding / np.float32(np.linalg.norm(embedding) or 1)
    pooled = []
    for index, head in enumerate(heads):
        odds = np.stack([window.probabilities[index] for window in windows])  # (W, outputs)
        if head.kind == "sigmoid":
            odds = np.concatenate([1 - odds, odds], axis=1)  # (W, 2)
        powers = np.exp(weights @ np.log(np.maximum(odds, np.finfo(np.float32).tiny)))  # (outputs,) or (2,)
        shares = (powers / powers.sum()).astype(np.float32)
        pooled.append(shares[1:] if head.kind == "sigmoid" else shares)
    return ModelOutput(embedding.astype(np.float32), tuple(pooled))


def postprocess(heads: Sequence[bundle.Head], outputs: Sequence[NDArray[np.float32]]) -> list[ModelOutput | None]:
    """Splits the outputs of a batch into one row per item.

    Args:
        heads: Heads in the model's order.
        outputs: The embedding (B, dimensions), then each head's logits (B, outputs), float32.

    Returns:
        B rows; None for an item whose embedding or logits are not all finite.
    """
    embedding, *logits = outputs
    with np.errstate(all="ignore"):  # values that are not finite are found below
        scores = [probabilities(head, values) for head, values in zip(heads, logits, strict=True)]
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=-1) for values in outputs])  # (B,)
    return [
        ModelOutput(embedding[row], tuple(score[row] for score in scores)) if finite[row] else None
        for row in range(len(embedding))
    ]

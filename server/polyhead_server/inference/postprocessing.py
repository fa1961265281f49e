"""Converts logits to probabilities, by the declared kind of each head and never by the number of its labels.

The same functions exist twice in the project: here, and in ``polyhead_training.evaluation.probabilities``, which the
export gate uses. The server imports neither training nor export.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from .types import ModelOutput


def probabilities(head: bundle.Head, logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Converts a head's logits to probabilities.

    Args:
        head: Gives the kind, and the temperature that divides the logits (Guo et al. 2017, arXiv 1706.04599).
        logits: (..., outputs) float32 or float64, finite.

    Returns:
        (..., numbers) float32: softmax over the outputs; the sigmoid of each for sigmoid and multilabel heads; one
        probability per label for an ordinal head, which has an output less; the output itself for a regression head.
    """
    # float32 resolves a quotient of 10,000 only to 1e-3, and overflows at temperatures far below 1.
    scaled = logits.astype(np.float64) / head.temperature  # (..., outputs)
    match head.kind:
        case "softmax":
            powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))  # (..., labels)
            values = powers / powers.sum(axis=-1, keepdims=True)
        case "sigmoid" | "multilabel":
            values = _sigmoid(scaled)
        case "ordinal":
            values = _ordinal(scaled)
        case "regression":
            values = scaled
    return np.asarray(values, dtype=np.float32)


def _sigmoid(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp of a large positive number overflows, so each sign has its own form of the same function.
    small = np.exp(-np.abs(scaled))
    return np.where(scaled >= 0, 1 / (1 + small), small / (1 + small))


def _ordinal(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probability of each of K labels, given K - 1 log-odds that the answer is above label j: (..., K).

    The probabilities of being above a label never rise with it: where the outputs do, the smallest before counts.
    """
    above = np.minimum.accumulate(_sigmoid(scaled), axis=-1)  # (..., K - 1)
    ones = np.ones_like(above[..., :1])
    bounds = np.concatenate([ones, above, np.zeros_like(ones)], axis=-1)  # (..., K + 1)
    return np.asarray(bounds[..., :-1] - bounds[..., 1:])


def pool_windows(
    heads: Sequence[bundle.Head], windows: Sequence[ModelOutput], tokens: Sequence[int], *, normalized: bool
) -> ModelOutput | None:
    """Pools the outputs of a text's windows into one output, each window weighted by its tokens.

    The embedding is the mean of the windows' embeddings, scaled to length 1 where ``normalized``. A head's
    probabilities are those of the mean of the windows' logits, which for a regression head is the mean of its values.
    The windows' probabilities would not do: in float32 a probability close to 1 has lost the logit that it was made of.

    Args:
        heads: Heads in the model's order.
        windows: Outputs of the W windows.
        tokens: (W,) tokens of each window.
        normalized: Whether embeddings have length 1.

    Returns:
        The output of the text; None if it is not finite.
    """
    weights = np.asarray(tokens, dtype=np.float64) / sum(tokens)  # (W,)
    embedding = _mean(weights, [window.embedding for window in windows])  # (dimensions,)
    if normalized:
        embedding = embedding / (np.linalg.norm(embedding) or 1)
    logits = [_mean(weights, [window.logits[index] for window in windows]) for index in range(len(heads))]
    (pooled,) = postprocess(heads, [embedding[None], *(values[None] for values in logits)])
    return pooled


def _mean(weights: NDArray[np.float64], windows: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.asarray(weights @ np.stack(windows).astype(np.float64))


def postprocess(heads: Sequence[bundle.Head], outputs: Sequence[NDArray[np.floating[Any]]]) -> list[ModelOutput | None]:
    """Splits the outputs of a batch into one row per item.

    Args:
        heads: Heads in the model's order.
        outputs: The embedding (B, dimensions), then each head's logits (B, outputs).

    Returns:
        B rows; None for an item with a number that is not finite, among the outputs or among the probabilities.
    """
    with np.errstate(all="ignore"):  # values that are not finite are found below
        embedding, *logits = (np.asarray(values, dtype=np.float32) for values in outputs)
        scores = [probabilities(head, values) for head, values in zip(heads, outputs[1:], strict=True)]
        every = (embedding, *logits, *scores)
        # A number that is not finite makes a sum that is not. To look at each takes 7 us more for a batch of one.
        total = sum([float(values.sum()) for values in every])
    rows: list[ModelOutput | None] = [
        ModelOutput(embedding[row], tuple([one[row] for one in logits]), tuple([one[row] for one in scores]))
        for row in range(len(embedding))
    ]
    if math.isfinite(total):
        return rows
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=-1) for values in every])  # (B,)
    return [row if is_finite else None for row, is_finite in zip(rows, finite, strict=True)]

"""The sentence embedding's own poolings and layers, those of sentence-transformers.

Shapes: B texts, T tokens, H hidden size::

    token vectors (B, T, H) --pool--> (B, H) --each layer: dense, layer_norm, normalize--> (B, dimensions)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "none": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def pool(hidden: Tensor, attention_mask: Tensor, kind: str) -> Tensor:
    """Pools token vectors into one vector per text, (B, H).

    Args:
        hidden: (B, T, H) token vectors.
        attention_mask: (B, T), 1 for a text's tokens and 0 for the padding after them.
        kind: A kind of ``EmbeddingPoolingKind`` other than ``shared``.
    """
    if kind == "cls":
        return hidden[:, 0]
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    if kind == "max":
        return hidden.masked_fill(weights == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
    if kind == "lasttoken":
        last = (attention_mask.sum(dim=1) - 1).clamp(min=0)  # (B,)
        positions = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
        weights = (positions == last.unsqueeze(-1)).unsqueeze(-1).to(hidden.dtype)
    elif kind == "weightedmean":
        weights = weights * torch.arange(1, hidden.shape[1] + 1, device=hidden.device).unsqueeze(-1)
    total, count = (hidden * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1.0)  # (B, H), (B, 1)
    return total / count.sqrt() if kind == "mean_sqrt_len" else total / count


class EmbeddingLayer(nn.Module):
    """A layer between the pooling of the sentence embedding and its normalization.

    Args:
        settings: ``kind``: ``dense`` (a linear layer to ``out_features`` numbers, then ``activation``), ``layer_norm``,
            or ``normalize`` (to Euclidean length 1).
        in_features: Width of the layer's input.

    Raises:
        ValueError: The kind or the activation is unknown.
    """

    def __init__(self, settings: Mapping[str, Any], in_features: int) -> None:
        super().__init__()
        self.kind = settings.get("kind")
        if self.kind == "dense":
            if (name := settings.get("activation", "none")) not in ACTIVATIONS:
                raise ValueError(f"embedding_layers: the activation {name!r} is not supported")
            self.linear = nn.Linear(in_features, int(settings["out_features"]))
            self.activation = ACTIVATIONS[name]()
        elif self.kind == "layer_norm":
            self.norm = nn.LayerNorm(in_features)
        elif self.kind != "normalize":
            raise ValueError(f"embedding_layers: the kind {self.kind!r} is not supported")

    def forward(self, vectors: Tensor) -> Tensor:
        """Converts (B, in_features) vectors."""
        if self.kind == "dense":
            return cast(Tensor, self.activation(self.linear(vectors)))
        return cast(Tensor, self.norm(vectors)) if self.kind == "layer_norm" else nn.functional.normalize(vectors)


def embedding_size(pooling: str, layers: Sequence[Mapping[str, Any]], hidden_size: int) -> int:
    """Returns the number of dimensions of a sentence embedding."""
    widths = [int(layer["out_features"]) for layer in layers if layer.get("kind") == "dense"]
    return widths[-1] if widths else hidden_size * (pooling.count("+") + 1)


def build_layers(pooling: str, layers: Sequence[Mapping[str, Any]], hidden_size: int) -> nn.Sequential:
    """Builds the layers of a sentence embedding."""
    built = []
    for number, layer in enumerate(layers):
        built.append(EmbeddingLayer(layer, embedding_size(pooling, layers[:number], hidden_size)))
    return nn.Sequential(*built)

"""The heads of the model, and the standardization of those that predict a number.

::

    features (B, H) --layers--> logits (B, outputs)
                    --layers--> standardized values --mean, spread--> values (B, 1), until ``fold``
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .embedding import ACTIVATIONS
from .model_types import ActivationKind, HeadKind, output_width


class Head(nn.Module):
    """A head: dropout, linear, activation, dropout, linear to its logits.

    Without an activation it has no hidden layer: dropout, linear. With ``norm_eps``, a LayerNorm of that epsilon
    follows the activation, as in classifiers of ModernBERT. While a regression head trains, its layers compute
    standardized values, which ``standardization``, a mean and a spread, converts to the scale of the data; ``fold``
    then moves the conversion into the last layer.
    """

    def __init__(  # noqa: PLR0917
        self,
        kind: HeadKind,
        labels: int,
        in_size: int,
        hidden_size: int,
        dropout: float,
        activation: ActivationKind = "relu",
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.standardization: tuple[float, float] | None = None
        outputs = output_width(kind, labels)
        if activation == "none":
            self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(in_size, outputs))
            return
        active = ACTIVATIONS[activation]()
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(in_size, hidden_size),
            active if norm_eps is None else nn.Sequential(active, nn.LayerNorm(hidden_size, eps=norm_eps)),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Computes (B, outputs) logits from (B, H) features."""
        values = cast(Tensor, self.layers(features))
        if self.standardization is None:
            return values
        mean, spread = self.standardization
        # Half precision is too coarse for a small spread around a large mean.
        return values.float() * spread + mean

    def fold(self) -> None:
        """Moves the standardization into the last layer; the outputs remain the same."""
        if self.standardization is None:
            return
        mean, spread = self.standardization
        last = cast(nn.Linear, self.layers[-1])
        with torch.no_grad():
            last.weight *= spread
            last.bias.copy_(last.bias * spread + mean)
        self.standardization = None

"""Agreement of predictions: of two forward passes with different dropout (R-Drop), and with a teacher.

Both losses are means over all rows of a step, labelled or not, like the distillation of the embedding. A micro-batch
contributes its rows' share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from polyhead_training.model_types import HeadKind

from .loss import Losses, Objective, Totals

Logits = Mapping[str, Tensor]


def mean_losses(first: Losses, second: Losses) -> Losses:
    """Returns the means of the losses of two forward passes over the same rows."""
    return Losses(*(0.5 * (ours + theirs) for ours, theirs in zip(first, second, strict=True)))


def r_drop_loss(objective: Objective, first: Logits, second: Logits, totals: Totals) -> Tensor:
    """Computes the disagreement of two forward passes: the mean of the divergences in both directions, in nats.

    Liang et al., arXiv 2106.14448, equation 2.

    Args:
        objective: The heads and their loss weights.
        first: (B, outputs) logits of each head, by head name.
        second: Those of the other forward pass over the same rows.
        totals: Divisors of the whole step.
    """
    both = (
        0.5
        * (
            divergence(head.kind, first[head.name], second[head.name], spread).sum()
            + divergence(head.kind, second[head.name], first[head.name], spread).sum()
        )
        for head, spread in zip(objective.heads, _spreads(objective), strict=True)
    )
    return (objective.loss_weights * torch.stack(list(both))).sum() / totals.rows


def teacher_loss(objective: Objective, teacher: Logits, logits: Logits, totals: Totals, temperature: float) -> Tensor:
    """Computes the disagreement with a teacher, in nats.

    Hinton et al., arXiv 1503.02531: both distributions are softened by the temperature, and the factor temperature^2
    keeps the size of the gradient.

    Args:
        objective: The heads and their loss weights.
        teacher: (B, outputs) logits of the heads that the teacher has, by head name.
        logits: (B, outputs) logits of each head.
        totals: Divisors of the whole step.
        temperature: Divisor of both logits.
    """
    found = [
        weight * divergence(head.kind, teacher[head.name] / temperature, logits[head.name] / temperature, spread).sum()
        for head, weight, spread in zip(objective.heads, objective.loss_weights, _spreads(objective), strict=True)
        if head.name in teacher
    ]
    return temperature**2 * torch.stack(found).sum() / totals.rows


def _spreads(objective: Objective) -> list[float]:
    """Returns the standard deviation of each regression head's targets, 1 for other heads."""
    return [objective.standardizations.get(head.name, (0.0, 1.0))[1] for head in objective.heads]


def divergence(kind: HeadKind, target: Tensor, logits: Tensor, spread: float = 1.0) -> Tensor:
    """Computes the Kullback-Leibler divergence of each row's prediction from its target, in nats.

    Args:
        kind: ``softmax``: one distribution over the labels; ``regression``: normal distributions around the numbers;
            any other: a binary distribution for each output, whose divergences are summed.
        target: (B, outputs) logits.
        logits: (B, outputs) logits.
        spread: Standard deviation of the normal distributions of a regression head.

    Returns:
        (B,) float32, 0 where both are equal.
    """
    # Half precision is too coarse for differences of logarithms.
    target, logits = target.float(), logits.float()
    if kind == "regression":
        return 0.5 * ((target - logits) / spread).square().sum(dim=1)
    if kind != "softmax":
        # Two outcomes with the logits 0 and z, (B, outputs, 2).
        target, logits = (functional.pad(one.unsqueeze(-1), (1, 0)) for one in (target, logits))
    log_target, log_found = target.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (log_target.exp() * (log_target - log_found)).flatten(start_dim=1).sum(dim=1)

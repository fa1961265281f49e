"""The loss of a step: each head's mean over its labelled rows, plus distillation of the embedding.

A step may be computed in several micro-batches on several processes. Each micro-batch contributes its rows' share of
the step's loss, so the means are over the rows of the whole step, however it is split::

    labels of the whole step --totals--> Totals
    outputs, labels of one micro-batch, Totals --Objective--> Losses, the micro-batch's share
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyhead_training.config import HeadConfig, TrainingConfig
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.model import Outputs
from polyhead_training.model_types import HeadKind


class Totals(NamedTuple):
    """Divisors of the sums over the rows of a step.

    Attributes:
        rows: Number of rows of the step.
        heads: (heads,) sum of the class weights of each head's labelled rows; without class weights, their number.
    """

    rows: int
    heads: Tensor


class Losses(NamedTuple):
    """A micro-batch's share of a step's loss.

    Attributes:
        total: The total loss that training minimizes, a scalar.
        heads: (heads,) mean cross-entropy of each head over its labelled rows, in nats; exactly 0 where there are none.
        distillation: Mean of 1 - cosine between the embeddings now and before training, 0 to 2; 0 without distillation.
    """

    total: Tensor
    heads: Tensor
    distillation: Tensor


class Objective(nn.Module):
    """The total loss: the weighted losses of the heads, plus distillation.

    Args:
        heads: The heads, each with its labels.
        config: Loss weights, their weighting scheme, and the weight of distillation.
        labels: (rows, heads) int64 labels of all training rows, for balanced class weights.
    """

    def __init__(self, heads: Sequence[HeadConfig], config: TrainingConfig, labels: Tensor) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.distillation = config.distillation
        factors = torch.tensor([config.loss_weights.get(head.name, 1.0) for head in heads])
        self.loss_weights = nn.Parameter(factors, requires_grad=False)
        self.class_weights = nn.ParameterList(
            nn.Parameter(class_weights(head, labels[:, column]), requires_grad=False)
            for column, head in enumerate(heads)
        )
        learned = config.loss_weighting == "uncertainty"
        # The logarithm of each head's variance.
        self.log_variances = nn.Parameter(torch.zeros(len(heads))) if learned else None

    def totals(self, labels: Tensor) -> Totals:
        """Computes the divisors of a step from the (rows, heads) labels of all its rows."""
        sums = []
        for column, weights in enumerate(self.class_weights):
            found = labels[:, column].to(weights.device)  # (rows,)
            sums.append(weights[found[found != UNLABELLED]].sum())
        return Totals(len(labels), torch.stack(sums))

    def forward(self, outputs: Outputs, labels: Tensor, totals: Totals, base: Tensor | None) -> Losses:
        """Computes a micro-batch's share of its step's loss.

        Args:
            outputs: Model outputs for B rows.
            labels: (B, heads) int64 label index of each head, ``UNLABELLED`` for rows without a label.
            totals: Divisors of the whole step.
            base: (B, H) embeddings of the same rows before training, of length 1; None for no distillation.
        """
        heads = torch.stack(
            [
                head_loss(head.kind, outputs.logits[head.name], labels[:, column], weights, head.label_smoothing)
                for column, (head, weights) in enumerate(zip(self.heads, self.class_weights, strict=True))
            ]
        ) / torch.where(totals.heads > 0, totals.heads, 1.0)  # (heads,)
        distillation = heads.new_zeros(())
        if base is not None:
            cosines = functional.cosine_similarity(outputs.sentence_embedding.float(), base, dim=-1)  # (B,)
            distillation = (1.0 - cosines).sum() / totals.rows
        share = len(labels) / totals.rows
        total = (self.loss_weights * self._weighted(heads, share, totals)).sum() + self.distillation * distillation
        return Losses(total, heads, distillation)

    def _weighted(self, heads: Tensor, share: float, totals: Totals) -> Tensor:
        """Weighs losses: exp(-s) L + s / 2 with s = log variance (Kendall et al., arXiv 1705.07115, equation 10)."""
        if self.log_variances is None:
            return heads
        # A head without labels in this step has no effect on its variance.
        prior = 0.5 * self.log_variances * share * (totals.heads > 0)  # (heads,)
        return torch.exp(-self.log_variances) * heads + prior


def head_loss(kind: HeadKind, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Computes the sum of one head's cross-entropies over its labelled rows, in nats.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (B, labels) for a softmax head, (B, 1) for a sigmoid head.
        labels: (B,) int64 label indices, ``UNLABELLED`` for rows without a label.
        weights: (labels,) weight of a row's loss by its label.
        smoothing: Share of the target probability that is spread over all labels, 0 to 1 (Szegedy et al., arXiv
            1512.00567).

    Returns:
        A scalar; 0 without labelled rows, still connected to the logits so that every parameter receives a gradient.
    """
    labelled = labels != UNLABELLED  # (B,)
    if not labelled.any():
        return 0.0 * logits.float().sum()
    # Half precision is too coarse for sums of logarithms.
    chosen, targets = logits[labelled].float(), labels[labelled]  # (L, outputs), (L,)
    if kind == "softmax":
        losses = functional.cross_entropy(chosen, targets, reduction="none", label_smoothing=smoothing)  # (L,)
    else:
        smoothed = targets * (1.0 - smoothing) + 0.5 * smoothing  # (L,)
        losses = functional.binary_cross_entropy_with_logits(chosen.squeeze(-1), smoothed, reduction="none")  # (L,)
    return (weights[targets] * losses).sum()


def class_weights(head: HeadConfig, labels: Tensor) -> Tensor:
    """Returns the weight of a row's loss by its label, (labels,) float32.

    ``balanced`` weighs a label with n of N labelled rows by N / (labels * n), as scikit-learn does; a label without
    rows has weight 1.

    Args:
        head: The head, with its labels.
        labels: (rows,) int64 labels of the training rows.
    """
    names = head.labels or ()
    if isinstance(head.class_weights, Mapping):
        return torch.tensor([head.class_weights.get(name, 1.0) for name in names])
    if head.class_weights == "none":
        return torch.ones(len(names))
    counts = labels[labels != UNLABELLED].bincount(minlength=len(names))  # (labels,)
    return torch.where(counts > 0, counts.sum() / (len(names) * counts.clamp(min=1)), 1.0)

"""The loss of a step: each head's mean over its labelled rows, plus distillation of the embedding.

A step may be computed in several micro-batches on several processes. Each micro-batch contributes its rows' share of
the step's loss, so the means are over the rows of the whole step, however it is split::

    answers of the whole step --totals--> Totals
    outputs, answers of one micro-batch, Totals --Objective--> Losses, the micro-batch's share
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets, is_labelled
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import HeadKind
from polyhead_training.training_config import TrainingConfig

from .skew import focal_factor, logit_offsets


class Totals(NamedTuple):
    """Divisors of the sums over the rows of a step.

    Attributes:
        rows: Number of rows of the step.
        heads: (heads,) sum of the weights of each head's labelled rows; without class weights, their number.
    """

    rows: int
    heads: Tensor


class Losses(NamedTuple):
    """A micro-batch's share of a step's loss.

    Attributes:
        total: The total loss that training minimizes, a scalar.
        heads: (heads,) mean loss of each head over its labelled rows; exactly 0 where there are none. Cross-entropy in
            nats; of a regression head, half the squared error in units of the targets' spread.
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
        labels: Answers of all training rows, for balanced class weights and for the targets' mean and spread.
    """

    def __init__(self, heads: Sequence[HeadConfig], config: TrainingConfig, labels: Targets) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.distillation = config.distillation
        factors = torch.tensor([config.loss_weights.get(head.name, 1.0) for head in heads])
        self.loss_weights = nn.Parameter(factors, requires_grad=False)
        self.class_weights = nn.ParameterList(
            nn.Parameter(class_weights(head, labels.heads[column]), requires_grad=False)
            for column, head in enumerate(heads)
        )
        # Standardized, the targets of every regression head weigh as much as each other.
        self.standardizations = standardizations(heads, labels)
        self.logit_offsets = nn.ParameterList(
            nn.Parameter(logit_offsets(head, labels.heads[column]), requires_grad=False)
            for column, head in enumerate(heads)
        )
        learned = config.loss_weighting == "uncertainty"
        # The logarithm of each head's variance.
        self.log_variances = nn.Parameter(torch.zeros(len(heads))) if learned else None

    def totals(self, labels: Targets) -> Totals:
        """Computes the divisors of a step from the answers of all its rows."""
        sums = []
        for weights, answers in zip(self.class_weights, labels.heads, strict=True):
            found = answers[is_labelled(answers)].to(weights.device)  # (L,) or (L, labels)
            # A multilabel head weighs labels, not rows; a number has no label.
            is_weighted = weights.dim() == 1 and len(weights)
            sums.append(weights[found].sum() if is_weighted else weights.new_tensor(float(len(found))))
        return Totals(len(labels), torch.stack(sums))

    def forward(self, outputs: Outputs, labels: Targets, totals: Totals, base: Tensor | None) -> Losses:
        """Computes a micro-batch's share of its step's loss.

        Args:
            outputs: Model outputs for B rows.
            labels: Answers for the same rows.
            totals: Divisors of the whole step.
            base: (B, H) embeddings of the same rows before training, of length 1; None for no distillation.
        """
        heads = torch.stack(
            [
                self._head_loss(column, outputs.logits[head.name], answers)
                for column, (head, answers) in enumerate(zip(self.heads, labels.heads, strict=True))
            ]
        ) / torch.where(totals.heads > 0, totals.heads, 1.0)  # (heads,)
        distillation = heads.new_zeros(())
        if base is not None:
            cosines = functional.cosine_similarity(outputs.sentence_embedding.float(), base, dim=-1)  # (B,)
            distillation = (1.0 - cosines).sum() / totals.rows
        share = len(labels) / totals.rows
        total = (self.loss_weights * self._weighted(heads, share, totals)).sum() + self.distillation * distillation
        return Losses(total, heads, distillation)

    def _head_loss(self, column: int, logits: Tensor, answers: Tensor) -> Tensor:
        head, gamma = self.heads[column], 0.0
        if (standardization := self.standardizations.get(head.name)) is not None:
            mean, spread = standardization
            logits, answers = (logits.float() - mean) / spread, (answers - mean) / spread
        if head.loss == "focal":
            gamma = head.focal_gamma
        elif head.loss == "logit_adjusted":
            logits = logits + self.logit_offsets[column]
        weights = self.class_weights[column]
        return head_loss(head.kind, logits, answers, weights, head.label_smoothing, focal_gamma=gamma)

    def _weighted(self, heads: Tensor, share: float, totals: Totals) -> Tensor:
        """Weighs losses: exp(-s) L + s / 2 with s = log variance (Kendall et al., arXiv 1705.07115, equation 10)."""
        if self.log_variances is None:
            return heads
        # A head without labels in this step has no effect on its variance.
        prior = 0.5 * self.log_variances * share * (totals.heads > 0)  # (heads,)
        return torch.exp(-self.log_variances) * heads + prior


def head_loss(
    kind: HeadKind, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, *, focal_gamma: float = 0.0
) -> Tensor:
    """Computes the sum of one head's losses over its labelled rows.

    Args:
        kind: Kind of the head. Softmax and sigmoid: cross-entropy. Multilabel: the sum of the binary cross-entropies of
            the labels. Ordinal: the sum of the binary cross-entropies of "above label j" (Niu et al., CVPR 2016).
            Regression: half the squared error, the negative log-likelihood of a normal distribution around the value,
            but for a constant.
        logits: (B, outputs); standardized values of a regression head.
        labels: Answers for the rows, as in ``Targets.heads``; standardized numbers of a regression head.
        weights: (labels,) weight of a row's loss by its label. Multilabel: (2, labels) weight of a label's loss where
            it does not apply and where it does. Regression: none, (0,).
        smoothing: Share of the target probability that is spread over all labels, 0 to 1 (Szegedy et al., arXiv
            1512.00567).
        focal_gamma: Focusing parameter of the focal loss of a softmax or sigmoid head; 0 for the cross-entropy.

    Returns:
        A scalar; 0 without labelled rows, still connected to the logits so that every parameter receives a gradient.
    """
    labelled = is_labelled(labels)  # (B,)
    if not labelled.any():
        return 0.0 * logits.float().sum()
    # Half precision is too coarse for sums of logarithms.
    chosen, targets = logits[labelled].float(), labels[labelled]  # (L, outputs), (L,)
    if kind == "softmax":
        losses = functional.cross_entropy(chosen, targets, reduction="none", label_smoothing=smoothing)  # (L,)
    elif kind == "sigmoid":
        losses = _binary(chosen.squeeze(-1), targets, smoothing)  # (L,)
    elif kind == "ordinal":
        above = targets[:, None] > torch.arange(chosen.shape[1], device=targets.device)  # (L, labels - 1)
        losses = _binary(chosen, above, smoothing).sum(dim=1)  # (L,)
    elif kind == "multilabel":
        applies = targets > 0  # (L, labels)
        return (torch.where(applies, weights[1], weights[0]) * _binary(chosen, applies, smoothing)).sum()
    else:
        return 0.5 * functional.mse_loss(chosen.squeeze(-1), targets.float(), reduction="sum")
    if focal_gamma:
        losses = focal_factor(kind, chosen, targets, focal_gamma) * losses
    return (weights[targets] * losses).sum()


def _binary(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Computes binary cross-entropies, in the shape of the logits."""
    smoothed = targets * (1.0 - smoothing) + 0.5 * smoothing
    return functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")


def standardizations(heads: Sequence[HeadConfig], labels: Targets) -> dict[str, tuple[float, float]]:
    """Returns the mean and the standard deviation of the answers of each regression head, by its name.

    Of equal answers, as a fold may have, the standard deviation counts as 1; without any, the mean as 0.
    """
    found = {}
    for head, answers in zip(heads, labels.heads, strict=True):
        if head.kind == "regression":
            known = answers[is_labelled(answers)].double()  # (L,)
            mean = float(known.mean()) if len(known) else 0.0
            # Rounding leaves a little deviation of equal answers.
            differ = len(known) > 0 and bool(known.min() < known.max())
            found[head.name] = mean, float(known.std(correction=0)) if differ else 1.0
    return found


def class_weights(head: HeadConfig, labels: Tensor) -> Tensor:
    """Returns the weight of a row's loss by its label, (labels,) float32; (0,) for a regression head.

    ``balanced`` weighs a label with n of N labelled rows by N / (labels * n), as scikit-learn does; a label without
    rows has weight 1. The weights of a multilabel head, (2, labels), are those of each label's absence and presence, as
    if it were a head with two labels.

    Args:
        head: The head, with its labels.
        labels: Answers of the training rows.
    """
    names = head.labels or ()
    if head.kind == "multilabel":
        return _binary_weights(head, labels)
    if isinstance(head.class_weights, Mapping):
        return torch.tensor([head.class_weights.get(name, 1.0) for name in names])
    if head.class_weights == "none":
        return torch.ones(len(names))
    counts = labels[labels != UNLABELLED].bincount(minlength=len(names))  # (labels,)
    return torch.where(counts > 0, counts.sum() / (len(names) * counts.clamp(min=1)), 1.0)


def _binary_weights(head: HeadConfig, labels: Tensor) -> Tensor:
    names = head.labels or ()
    weights = torch.ones(2, len(names))
    if isinstance(head.class_weights, Mapping):
        weights[1] = torch.tensor([head.class_weights.get(name, 1.0) for name in names])
    elif head.class_weights == "balanced":
        known = labels[is_labelled(labels)]  # (L, labels)
        present = (known > 0).sum(dim=0)  # (labels,)
        counts = torch.stack([len(known) - present, present])  # (2, labels)
        weights = torch.where(counts > 0, len(known) / (2 * counts.clamp(min=1)), 1.0)
    return weights

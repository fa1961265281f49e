"""Losses for skewed labels: the focal loss, and the logit-adjusted loss.

::

    logits --+ offsets (logit_adjusted)--> cross-entropy --* focal_factor (focal)--> loss of a row
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polyhead_training.data.labels import UNLABELLED
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import HeadKind, output_width

# Below it, the power of a small gamma would have an infinite gradient.
_MIN_MISS = 1e-8


def logit_offsets(head: HeadConfig, labels: Tensor) -> Tensor:
    """Returns what the loss adds to a head's logits: the logarithm of each label's share of the training rows.

    A model that is trained with these offsets and predicts without them minimizes the mean error of the labels, each
    label counting equally (Menon et al., arXiv 2007.07314, equation 10, with tau = 1).

    Args:
        head: The head, with its labels.
        labels: (rows,) int64 labels of the training rows.

    Returns:
        (labels,) float32 for a softmax head; (1,), the log-odds of the second label, for a sigmoid head; zeros, one for
        each output, unless the head's loss is ``logit_adjusted``. A label without rows counts as one row.
    """
    count = len(head.labels or ())
    if head.loss != "logit_adjusted":
        return torch.zeros(output_width(head.kind, count))
    rows = labels[labels != UNLABELLED].bincount(minlength=count).clamp(min=1)  # (labels,)
    logarithms = (rows / rows.sum()).log()
    return logarithms[1:] - logarithms[:1] if head.kind == "sigmoid" else logarithms


def focal_factor(kind: HeadKind, logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Computes the factor of each row's cross-entropy in the focal loss, (1 - p) ** gamma.

    p is the probability of the true label, so rows that are predicted well weigh less (Lin et al., arXiv 1708.02002,
    equation 4).

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (L, outputs) float32.
        targets: (L,) int64 label indices.
        gamma: Focusing parameter; 0 yields factors of 1.
    """
    if kind == "softmax":
        losses = functional.cross_entropy(logits, targets, reduction="none")  # (L,)
    else:
        targets = targets.to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits.squeeze(-1), targets, reduction="none")  # (L,)
    return (-torch.expm1(-losses)).clamp(min=_MIN_MISS) ** gamma

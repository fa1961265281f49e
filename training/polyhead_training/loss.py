"""The loss: for each head the mean over its labelled rows, summed over the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional

from .config import HeadConfig
from .model import HeadKind

# In the place of a label's index: the row says nothing about this head.
UNLABELLED = -1


def total_loss(
    logits: Mapping[str, Tensor], labels: Tensor, heads: Sequence[HeadConfig], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch.

    Args:
        logits: (B, outputs) of each head, by its name.
        labels: (B, heads) int64 index of each head's label, ``UNLABELLED`` where the row has none.
        heads: The heads, in the order of the columns of ``labels``.
        weights: Factor of a head's loss, by its name; 1 when absent.

    Returns:
        The weighted sum, a scalar, and each head's own loss; that of a head without a labelled row is exactly 0.
    """
    losses = {
        head.name: head_loss(head.kind, logits[head.name], labels[:, column]) for column, head in enumerate(heads)
    }
    weighted = [weights.get(name, 1.0) * loss for name, loss in losses.items()]
    return sum(weighted[1:], start=weighted[0]), losses


def head_loss(kind: HeadKind, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of one head over its labelled rows, in nats.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (B, labels) for a softmax head, (B, 1) for a sigmoid head.
        labels: (B,) int64 indices, ``UNLABELLED`` where the row has none.

    Returns:
        A scalar; 0 where no row is labelled, with the gradient's path intact so that every parameter gets one.
    """
    labelled = labels != UNLABELLED  # (B,)
    if not labelled.any():
        return 0.0 * logits.sum()
    # Half precision is too coarse for a mean of logarithms.
    chosen, targets = logits[labelled].float(), labels[labelled]  # (L, outputs), (L,)
    if kind == "softmax":
        return functional.cross_entropy(chosen, targets)
    return functional.binary_cross_entropy_with_logits(chosen.squeeze(-1), targets.float())

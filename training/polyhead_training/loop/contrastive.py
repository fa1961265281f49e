"""Contrastive training of the sentence embedding on labels: equal labels attract, different labels repel.

::

    labels of all rows --contrastive_epoch--> steps of several rows for each of several labels
    embeddings of a micro-batch, its labels --ContrastiveObjective--> Losses, over all pairs of the micro-batch
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets, class_labels
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import CLASS_KINDS
from polyhead_training.training_config import TrainingConfig

from .loss import Losses, Totals

# Rows of a label that a step takes together: 4 rows are 6 pairs that attract.
_MIN_GROUP_ROWS = 4


class ContrastiveObjective(nn.Module):
    """The loss of a contrastive stage, with the interface of ``Objective``.

    Args:
        heads: The heads, in the order of the answers. Those without one class per row have a loss of 0.
        config: The weights of the heads' losses and of distillation.
    """

    def __init__(self, heads: Sequence[HeadConfig], config: TrainingConfig) -> None:
        super().__init__()
        self.heads = tuple(heads)
        weights = torch.tensor([config.loss_weights.get(head.name, 1.0) * (head.kind in CLASS_KINDS) for head in heads])
        self.loss_weights = nn.Parameter(weights, requires_grad=False)
        self.distillation = config.distillation

    def totals(self, labels: Targets) -> Totals:
        """Computes the divisors of a step from the answers of all its rows."""
        classes = class_labels(self.heads, labels)
        return Totals(len(labels), (classes != UNLABELLED).sum(dim=0).to(self.loss_weights))

    def forward(self, outputs: Outputs, labels: Targets, totals: Totals, base: Tensor | None) -> Losses:
        """Computes a micro-batch's share of its step's loss; takes the same arguments as ``Objective``.

        The share of each head is that of its labelled rows, so that micro-batches of equal size count equally.
        """
        embedding = functional.normalize(outputs.sentence_embedding.float(), dim=-1)  # (B, E)
        losses = []
        for total, classes in zip(totals.heads, class_labels(self.heads, labels).unbind(dim=1), strict=True):
            labelled = classes != UNLABELLED  # (B,)
            share = labelled.sum() / total.clamp(min=1.0)
            losses.append(share * pair_loss(embedding[labelled], classes[labelled]))
        heads = torch.stack(losses)  # (heads,)
        distillation = heads.new_zeros(())
        if base is not None:
            distillation = (1.0 - (embedding * base).sum(dim=-1)).sum() / totals.rows
        return Losses((self.loss_weights * heads).sum() + self.distillation * distillation, heads, distillation)


def pair_loss(embedding: Tensor, labels: Tensor) -> Tensor:
    """Computes the loss of all pairs of rows: the squared distance of each cosine from 1 or 0.

    It is the loss of SetFit (Tunstall et al., arXiv 2209.11055, section 3), whose pairs with equal labels count as much
    in total as those with different labels.

    Args:
        embedding: (B, E) float32, of length 1.
        labels: (B,) int64 label indices.

    Returns:
        A scalar, the sum of the mean over the pairs of each kind that occurs, halved; 0 without pairs, connected to the
        embeddings.
    """
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)  # (pairs,) each
    equal = (labels[first] == labels[second]).to(embedding.dtype)  # (pairs,)
    cosines = (embedding[first] * embedding[second]).sum(dim=-1)  # (pairs,)
    squares = (cosines - equal) ** 2
    attraction = (squares * equal).sum() / equal.sum().clamp(min=1.0)
    repulsion = (squares * (1.0 - equal)).sum() / (1.0 - equal).sum().clamp(min=1.0)
    return 0.5 * (attraction + repulsion) + 0.0 * embedding.sum()


def contrastive_epoch(labels: Tensor, rows_per_step: int, seed: int, number: int) -> list[list[int]]:
    """Returns the rows of each step of an epoch, a function of the arguments alone.

    Rows with equal labels for all heads form groups of at least 4 rows, more if a step then still holds each
    combination of labels. Successive groups have different labels as long as there are any.

    Args:
        labels: (rows, heads) int64 labels of the training rows, from ``class_labels``.
        rows_per_step: Rows in a step, over all micro-batches and processes.
        seed: Seed of the order.
        number: Number of the epoch in the run, counted from 0.
    """
    rng = random.Random(f"contrastive/{seed}/{number}")  # noqa: S311
    by_labels: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, found in enumerate(labels.tolist()):
        if any(label != UNLABELLED for label in found):
            by_labels[tuple(found)].append(row)
    size = max(_MIN_GROUP_ROWS, rows_per_step // max(1, len(by_labels)))
    rounds: dict[int, list[list[int]]] = defaultdict(list)
    for rows in by_labels.values():
        rng.shuffle(rows)
        for index, (start, end) in enumerate(_parts(len(rows), max(1, len(rows) // size))):
            rounds[index].append(rows[start:end])
    order: list[int] = []
    for index in sorted(rounds):
        rng.shuffle(rounds[index])
        order += [row for group in rounds[index] for row in group]
    return [order[start:end] for start, end in _parts(len(order), math.ceil(len(order) / rows_per_step))]


def _parts(count: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yields start and end of parts of nearly equal size: a last part of a single row would have no pairs."""
    yield from itertools.pairwise(count * part // parts for part in range(parts + 1))

"""True answers of the rows for heads of every kind, as tensors.

::

    Target of each row --Targets.encode--> one tensor per head
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import CLASS_KINDS

from .labels import UNLABELLED
from .targets import Target


@dataclass(frozen=True)
class Targets:
    """True answers of N rows as tensors.

    Attributes:
        heads: One tensor per head. Softmax, sigmoid and ordinal: (N,) int64, the index of the label. Multilabel:
            (N, labels) int8, 1 for each label that applies and 0 for others. These are ``UNLABELLED`` in rows without
            an answer. Regression: (N,) float32, the number, NaN in rows without one.
        size: N.
    """

    heads: tuple[Tensor, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    @classmethod
    def encode(cls, rows: Sequence[Sequence[Target | None]], heads: Sequence[HeadConfig]) -> Targets:
        """Encodes the answers of N rows, one per head and row, for heads with known labels."""
        return cls(tuple(_encode(head, [row[column] for row in rows]) for column, head in enumerate(heads)), len(rows))

    def rows(self, numbers: Sequence[int]) -> Targets:
        """Returns the answers of the rows with these numbers, in this order."""
        chosen = list(numbers)
        return Targets(tuple(one[chosen] for one in self.heads), len(chosen))

    def to(self, device: torch.device) -> Targets:
        """Returns the answers on a device."""
        return Targets(tuple(one.to(device) for one in self.heads), self.size)

    def labelled(self) -> Tensor:
        """Returns whether each row has an answer for each head, (N, heads) bool."""
        marks = [is_labelled(one) for one in self.heads]
        return torch.stack(marks, dim=1) if marks else torch.zeros(self.size, 0, dtype=torch.bool)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Returns the tensors as NumPy arrays."""
        return tuple(one.numpy() for one in self.heads)


def class_labels(heads: Sequence[HeadConfig], targets: Targets) -> Tensor:
    """Returns the labels of N rows, (N, heads) int64: ``UNLABELLED`` too for heads without one of several classes."""
    columns = [
        answers if head.kind in CLASS_KINDS else answers.new_full((len(targets),), UNLABELLED, dtype=torch.int64)
        for head, answers in zip(heads, targets.heads, strict=True)
    ]
    return torch.stack(columns, dim=1)


def is_labelled(targets: Tensor) -> Tensor:
    """Returns whether each of N rows has an answer, (N,) bool, from the tensor of one head."""
    if targets.is_floating_point():
        return ~targets.isnan()
    # Rows of a multilabel head are unlabelled in every column.
    return (targets if targets.dim() == 1 else targets[:, 0]) != UNLABELLED


def _encode(head: HeadConfig, targets: Sequence[Any]) -> Tensor:
    if head.kind == "regression":
        return torch.tensor([math.nan if one is None else one for one in targets], dtype=torch.float32)
    index = {label: number for number, label in enumerate(head.labels or ())}
    if head.kind != "multilabel":
        return torch.tensor([UNLABELLED if one is None else index[one] for one in targets], dtype=torch.int64)
    encoded = torch.zeros((len(targets), len(index)), dtype=torch.int8)
    for number, labels in enumerate(targets):
        if labels is None:
            encoded[number] = UNLABELLED
        else:
            encoded[number, [index[label] for label in labels]] = 1
    return encoded

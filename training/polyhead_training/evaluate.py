"""How often the model is right: accuracy of each head over its labelled rows, beside the majority baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .batching import EncodedRows
from .config import HeadConfig
from .loss import UNLABELLED
from .model import HeadKind, PolyheadModel


@dataclass(frozen=True)
class HeadScore:
    """How one head did on one split.

    Attributes:
        rows: Rows that have a label for the head.
        accuracy: Share of them that it got right, 0 to 1; None without such rows.
        majority_baseline: Share that the commonest label alone would get right; None without such rows.
    """

    rows: int
    accuracy: float | None
    majority_baseline: float | None

    def to_json(self) -> dict[str, Any]:
        """The score as ``evaluation.json`` has it."""
        return asdict(self)


Scores = dict[str, HeadScore]


def evaluate(model: PolyheadModel, rows: EncodedRows, heads: Sequence[HeadConfig], batch_size: int) -> Scores:
    """Scores every head on some rows.

    Args:
        model: The model; it is left in evaluation mode.
        rows: The rows.
        heads: The heads, in the order of the columns of ``rows.labels``.
        batch_size: Texts in one pass.

    Returns:
        The scores, by the head's name.
    """
    logits = predict(model, rows, batch_size)
    return {
        head.name: score(head.kind, logits[head.name], rows.labels[:, column])
        for column, head in enumerate(heads)
        if len(rows)
    } or {head.name: HeadScore(0, None, None) for head in heads}


def predict(model: PolyheadModel, rows: EncodedRows, batch_size: int) -> dict[str, Tensor]:
    """Logits of every head, (rows, outputs) float32 on the CPU, in the order of the rows; empty without rows."""
    model.eval()
    order: list[int] = []
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for numbers in rows.by_length(batch_size):
            batch = rows.batch(numbers, model.device)
            for name, logits in model(batch.input_ids, batch.attention_mask).logits.items():
                parts.setdefault(name, []).append(logits.float().cpu())
            order += numbers
    back = torch.tensor(order).argsort()  # (rows,)
    return {name: torch.cat(logits)[back] for name, logits in parts.items()}


def score(kind: HeadKind, logits: Tensor, labels: Tensor) -> HeadScore:
    """Accuracy by the largest logit of a softmax head, by a probability of at least 0.5 of a sigmoid head.

    Args:
        kind: ``softmax`` or ``sigmoid``.
        logits: (N, labels) for a softmax head, (N, 1) for a sigmoid head.
        labels: (N,) int64 indices, ``UNLABELLED`` where the row has none.
    """
    labelled = labels != UNLABELLED  # (N,)
    chosen, targets = logits[labelled], labels[labelled]  # (L, outputs), (L,)
    if not len(targets):
        return HeadScore(0, None, None)
    # A logit of 0 is a probability of one half.
    answers = chosen.argmax(dim=-1) if kind == "softmax" else (chosen.squeeze(-1) >= 0).long()  # (L,)
    right = int((answers == targets).sum())
    return HeadScore(len(targets), right / len(targets), int(targets.bincount().max()) / len(targets))


def table(scores: Mapping[str, Scores]) -> list[str]:
    """Scores by split and head, as lines for a terminal."""
    lines = [f"{'split':<12}{'head':<16}{'rows':>8}{'accuracy':>10}{'majority':>10}"]
    for split, heads in scores.items():
        for name, found in heads.items():
            figures = f"{_figure(found.accuracy)}{_figure(found.majority_baseline)}"
            lines.append(f"{split:<12}{name:<16}{found.rows:>8,}{figures}")
    return lines


def _figure(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>10}"

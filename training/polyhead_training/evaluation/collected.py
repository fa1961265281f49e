"""What collected rows tell: how accurate the model was that served, and what the new model gains on rows held out.

::

    labelled rows of the random part, predictions of the server  --> accuracy of the served model
    held-out rows, predictions of the server and of this model   --> both accuracies and their difference

Each row of the random part was drawn with the same probability, whatever its text and its answer. So the share of
correct predictions among them is an unbiased estimate for all texts of the time in which they were collected, and its
exact binomial interval applies. The held-out rows trained neither model, and both are judged by the same labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead_training.model_config import HeadConfig

from .probabilities import Floats, Threshold, answers
from .selective import interval

if TYPE_CHECKING:
    from polyhead_training.data.collected import CollectedRows
    from polyhead_training.data.dataset import Row
    from polyhead_training.data.targets import Target

# Quantile of the normal distribution of a 95 % interval.
_Z = 1.96


def score_collected(
    heads: Sequence[HeadConfig],
    found: CollectedRows,
    logits: Mapping[str, Floats],
    temperatures: Mapping[str, float],
    thresholds: Mapping[str, Threshold | None],
) -> dict[str, Any]:
    """Computes the content of ``collected.json``.

    Args:
        heads: The heads; those that predict numbers are left out.
        found: The collected rows.
        logits: (held-out rows, outputs) of this model by head name.
        temperatures: Divisors of the logits by head name.
        thresholds: Thresholds of sigmoid and multilabel heads by head name.
    """
    models = Counter(row.collected.model for row in found.random if row.collected)
    scored = {}
    for column, head in enumerate(heads):
        if head.kind != "regression":
            threshold = thresholds.get(head.name)
            predicted = answers(
                head.kind, logits[head.name], temperatures.get(head.name, 1.0), 0.5 if threshold is None else threshold
            )
            scored[head.name] = _score_head(head, column, found, predicted)
    return {**found.to_json(), "models": dict(models), "heads": scored}


def _score_head(head: HeadConfig, column: int, found: CollectedRows, predicted: Any) -> dict[str, Any]:
    served = [hit for row in found.random if (hit := _served_hit(row, head, column)) is not None]
    pairs = [
        (hit, _label(head, answer) == row.labels[column])
        for row, answer in zip(found.held_out, predicted, strict=True)
        if (hit := _served_hit(row, head, column)) is not None
    ]
    return {
        "served": _accuracy(served),
        "held_out": {
            "served": _accuracy([before for before, _ in pairs]),
            "trained": _accuracy([after for _, after in pairs]),
            **_difference(pairs),
        },
    }


def _served_hit(row: Row, head: HeadConfig, column: int) -> bool | None:
    """Returns whether the server predicted a row correctly; None without its prediction or the label."""
    target = row.labels[column]
    if target is None or row.collected is None or head.name not in row.collected.predictions:
        return None
    return row.collected.predictions[head.name] == target


def _label(head: HeadConfig, answer: Any) -> Target:
    labels = head.labels or ()
    if head.kind == "multilabel":
        return tuple(sorted(label for label, one in zip(labels, answer, strict=True) if one))
    return labels[int(answer)]


def _accuracy(hits: Sequence[bool]) -> dict[str, Any]:
    if not hits:
        return {"rows": 0, "accuracy": None, "interval": None}
    return {"rows": len(hits), "accuracy": float(np.mean(hits)), "interval": interval(sum(hits), len(hits))}


def _difference(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Returns the difference of two accuracies on the same rows and its 95 % interval.

    The interval is Wald's for matched pairs after half a row is added to each of the four outcomes (Agresti and Min,
    Statistics in Medicine 24, 2005), which keeps its level for few rows.
    """
    fixed = sum(after and not before for before, after in pairs)
    broken = sum(before and not after for before, after in pairs)
    if not pairs:
        return {"fixed": 0, "broken": 0, "difference": None, "interval": None}
    rows, gained, lost = len(pairs) + 2, fixed + 0.5, broken + 0.5
    center = (gained - lost) / rows
    margin = _Z * math.sqrt((gained + lost) / rows - center**2) / math.sqrt(rows)
    return {
        "fixed": fixed,
        "broken": broken,
        "difference": (fixed - broken) / len(pairs),
        "interval": [max(-1.0, center - margin), min(1.0, center + margin)],
    }


def collected_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the content of ``collected.json`` as lines for a terminal."""
    for name, head in found["heads"].items():
        served, held = head["served"], head["held_out"]
        if served["rows"]:
            yield f"collected: head {name!r} of the served model is right in {_share(served)} random texts"
        if held["difference"] is not None:
            low, high = (100 * bound for bound in held["interval"])
            yield (
                f"collected: on the {held['served']['rows']:,} held out, {_percent(held['served'])} before and "
                f"{_percent(held['trained'])} now, {100 * held['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]"
            )


def _percent(found: Mapping[str, Any]) -> str:
    return f"{found['accuracy']:.1%}"


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}] of {found['rows']:,}"

"""Plausibility of the trained model: a graph that matches a model which reads nothing would pass every comparison.

::

    the model's outputs for the golden texts --> identical_outputs: do they depend on the text?
    the model's predictions for the evaluation data, or else for the golden texts --> label_share, majority_gap
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Check, Head
from polyhead_training.data.labels import UNLABELLED

from .eval_data import EvalData, predicted_labels
from .runners import Outputs
from .settings import Limits

# Relative difference below which two outputs count as equal; another text changes a trained model's output far more.
_EQUAL = 1e-5
# With fewer labelled rows, a label that is never predicted may be chance.
_MIN_ROWS = 20


def measure(
    outputs: Sequence[Outputs], heads: Sequence[Head], limits: Limits, eval_data: EvalData | None = None
) -> Iterator[Check]:
    """Yields the checks of a model.

    Args:
        outputs: The model's outputs for each golden text, (1, N) each. Golden texts differ from each other, so most of
            their outputs must differ too.
        heads: The heads.
        limits: The limits.
        eval_data: Labelled rows with the model's outputs.
    """
    for name in outputs[0]:
        rows = np.concatenate([found[name] for found in outputs])  # (texts, N)
        yield Check(f"identical_outputs.{name}", _identical(rows), limits.identical_outputs)
    for column, head in enumerate(heads):
        targets = eval_data.targets[:, column] if eval_data else np.zeros(0, np.int64)
        known = targets != UNLABELLED
        if eval_data and known.sum() >= _MIN_ROWS and len(np.unique(targets[known])) > 1:
            predicted = predicted_labels(eval_data.reference, head)[known]
            majority = np.bincount(targets[known]).max() / known.sum()
            gap = float(majority - (predicted == targets[known]).mean())
            yield Check(f"label_share.{head.name}", _largest_share(predicted), limits.label_share)
            yield Check(f"majority_gap.{head.name}", gap, limits.majority_gap)
        else:
            predicted = np.concatenate([predicted_labels(found, head) for found in outputs])
            yield Check(f"label_share.{head.name}", _largest_share(predicted), limits.label_share)


def warnings(checks: Sequence[Check]) -> list[str]:
    """Returns a sentence for each check that passed with a value that a useful model rarely has."""
    judged = {check.name.partition(".")[2] for check in checks if check.name.startswith("majority_gap.")}
    found = []
    for check in checks:
        kind, _, head = check.name.partition(".")
        if kind == "label_share" and check.value == 1:
            texts = "every row of the evaluation data" if head in judged else "all golden texts"
            hint = "" if head in judged else "; check it on your own texts with --eval-data"
            found.append(f"head {head!r} predicts the same label for {texts}{hint}")
        if kind == "majority_gap" and check.value >= 0:
            found.append(f"head {head!r} is no better on the evaluation data than its most frequent label")
    return found


def _identical(rows: NDArray[np.floating]) -> float:
    """Share of the rows, without the first, that equal an earlier row; NaN where a value is not a number."""
    if not np.isfinite(rows).all():
        return float("nan")
    differences = np.abs(rows[:, None] - rows[None]).max(axis=2)  # (texts, texts)
    scale = np.maximum(1, np.abs(rows).max())
    repeated = np.tril(differences <= _EQUAL * scale, k=-1).any(axis=1)  # (texts,)
    return float(repeated.sum() / max(len(rows) - 1, 1))


def _largest_share(labels: NDArray[np.integer]) -> float:
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))

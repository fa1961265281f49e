"""Plausibility of the trained model: a graph that matches a model which reads nothing would pass every comparison.

::

    the model's outputs for the golden texts --> identical_outputs: do they depend on the text?
    the model's predictions for the evaluation data, or else for the golden texts --> label_share
    its metrics on the evaluation data --> majority_gap, constant_gap
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polyhead_bundle import Check, Head
from polyhead_training.evaluation.probabilities import is_labelled

from .eval_data import EvalData, predictions
from .runners import Outputs
from .settings import Limits

# Relative difference below which two outputs count as equal; another text changes a trained model's output far more.
_EQUAL = 1e-5
# With fewer labelled rows, a label that is never predicted may be chance.
_MIN_ROWS = 20
# Kinds of checks that compare a head with a constant prediction.
_BASELINE_GAPS = frozenset({"majority_gap", "constant_gap"})


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
    spreads = {head.output: head.spread for head in heads}
    for name in outputs[0]:
        rows = np.concatenate([found[name] for found in outputs]) / spreads.get(name, 1.0)  # (texts, N)
        yield Check(f"identical_outputs.{name}", _identical(rows), limits.identical_outputs)
    for column, head in enumerate(heads):
        found = _judged(eval_data, head, column)
        if eval_data and found:
            predicted = predictions(eval_data.reference, head)[is_labelled(eval_data.targets[column])]
        else:
            predicted = np.concatenate([predictions(one, head) for one in outputs])
        if head.kind != "regression":
            yield Check(f"label_share.{head.name}", _largest_share(predicted), limits.label_share)
        if not found:
            continue
        if head.kind in ("ordinal", "regression"):
            quality = found["qwk" if head.kind == "ordinal" else "r2"] or 0.0
            yield Check(f"constant_gap.{head.name}", -max(-1.0, quality), limits.majority_gap)
        else:
            gap = found["majority_baseline"] - found["micro_f1" if head.kind == "multilabel" else "accuracy"]
            yield Check(f"majority_gap.{head.name}", gap, limits.majority_gap)


def _judged(eval_data: EvalData | None, head: Head, column: int) -> dict[str, Any]:
    """Returns the trained model's metrics of a head; empty with too few rows, and if all have the same answer."""
    if eval_data is None or eval_data.labelled_rows(column) < _MIN_ROWS:
        return {}
    targets = eval_data.targets[column]
    if len(np.unique(targets[is_labelled(targets)], axis=0)) < 2:
        return {}
    return eval_data.score(eval_data.reference, head, column)


def warnings(checks: Sequence[Check]) -> list[str]:
    """Returns a sentence for each check that passed with a value that a useful model rarely has."""
    judged = {name for kind, _, name in (check.name.partition(".") for check in checks) if kind in _BASELINE_GAPS}
    found = []
    for check in checks:
        kind, _, head = check.name.partition(".")
        if kind == "label_share" and check.value == 1:
            texts = "every row of the evaluation data" if head in judged else "all golden texts"
            hint = "" if head in judged else "; check it on your own texts with --eval-data"
            found.append(f"head {head!r} predicts the same label for {texts}{hint}")
        if kind == "majority_gap" and check.value >= 0:
            found.append(f"head {head!r} is no better on the evaluation data than its most frequent label")
        if kind == "constant_gap" and check.value >= 0:
            found.append(f"head {head!r} is no better on the evaluation data than a constant prediction")
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
    """Share of the most frequent prediction: a label, or a set of labels."""
    return float(np.unique(labels, axis=0, return_counts=True)[1].max() / len(labels))

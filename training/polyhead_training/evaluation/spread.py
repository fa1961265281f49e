"""Mean and spread of the metrics of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Numbers of an evaluation that are not metrics.
_OTHERS = frozenset({"rows", "pairs", "temperature", "threshold", "best_threshold"})


def spread(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarizes the contents of several ``evaluation.json`` files.

    Returns:
        For each split and head, for ``similarity``, and for each task of ``retrieval`` with the whole embedding, each
        metric with its ``values`` in the order of the runs (None where it is undefined), and over the defined ones
        ``mean``, standard deviation ``sd`` (None for a single one), ``min`` and ``max``. Metrics that are undefined in
        every run are left out.
    """
    content: dict[str, Any] = {}
    evaluations = [_with_whole_embedding(one) for one in evaluations]
    for split in dict.fromkeys(name for one in evaluations for name in one):
        parts = [one.get(split, {}) for one in evaluations]
        names = dict.fromkeys(name for part in parts for name, value in part.items() if isinstance(value, Mapping))
        if names:
            content[split] = {name: _metrics([part.get(name, {}) for part in parts]) for name in names}
        else:
            content[split] = _metrics(parts)
    return content


def _with_whole_embedding(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the results of each retrieval task by those of the whole embedding after training, which come first."""
    tasks = {name: task["results"][0]["after"] for name, task in evaluation.get("retrieval", {}).items()}
    return {**evaluation, **({"retrieval": tasks} if tasks else {})}


def _metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for part in parts for name, value in part.items() if isinstance(value, float))
    return {name: _summary([part.get(name) for part in parts]) for name in names if name not in _OTHERS}


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(defined),
        "sd": statistics.stdev(defined) if len(defined) > 1 else None,
        "min": min(defined),
        "max": max(defined),
        "values": list(values),
    }

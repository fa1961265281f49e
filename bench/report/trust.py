"""Tables of what heads that abstain keep, and of how well unfamiliar texts are told from known ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .runs import distinct
from .tables import table

Run = Mapping[str, Any]


def promise_table(runs: Sequence[Run], variant: str) -> str:
    """Returns a table with a row for each set and promise.

    Args:
        runs: The splits of ``bench.training.selective_accuracy``.
        variant: Variant whose answers to the test rows are shown.
    """
    headings = [
        "set",
        "promised, %",
        "splits",
        "met",
        "kept",
        "refuted",
        "answered, %",
        "their accuracy, %",
        "of all, %",
    ]
    rows = []
    for name in distinct(runs, "set"):
        for promised in distinct(runs, "promised"):
            members = [run for run in runs if (run["set"], run["promised"]) == (name, promised)]
            met = [run[variant] for run in members if run["met"]]
            counts = [
                len(members),
                len(met),
                *(sum(one[key] for one in met) if met else "" for key in ("kept", "refuted")),
            ]
            shares = [_mean([one[key] for one in met]) for key in ("coverage", "accuracy")]
            every = _mean([run[f"all_{variant}"] for run in members])
            rows.append([name, f"{100 * promised:g}", *counts, *shares, every])
    return table(headings, rows)


def novelty_table(runs: Sequence[Run], scores: Sequence[str]) -> str:
    """Returns a table with a row for each set and kind of unfamiliar texts: AUROC and FPR at 95 % of each score."""
    rows = [
        [
            run["set"],
            run["unfamiliar"],
            *(f"{run[one]['auroc']:.3f} / {100 * run[one]['fpr95']:.0f} %" for one in scores),
        ]
        for run in runs
    ]
    return table(["known", "unfamiliar", *scores], rows, (0, 1))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f}" if known else ""


FUNCTIONS = {function.__name__: function for function in (promise_table, novelty_table)}

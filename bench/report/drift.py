"""Table of simulated weeks: how soon drift is reported, and how often without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tables import table

Run = Mapping[str, Any]

# Hour of the simulated week at which sudden drift begins; see bench.training.drift.
_SUDDEN_FROM_H = 48


def delay_table(runs: Sequence[Run]) -> str:
    """Returns a table with a row for each kind of drift: weeks in which it was reported, and after how many hours."""
    rows = []
    for run in runs:
        if run["drift"] == "none":
            continue
        begin = _SUDDEN_FROM_H if run["onset"] == "sudden" else 0
        hours = [f"{value - begin:.0f}" for value in run["hours"]] if run["hours"] else [""] * 3
        measures = sorted(run["measures"], key=lambda name: -run["measures"][name])[:2]
        name = (
            f"{run['onset']}, {100 * run['share']:.0f} % {'reviews' if run['drift'] == 'reviews' else 'of one label'}"
        )
        rows.append([name, f"{run['reported']} of {run['weeks']}", hours[1], hours[0], hours[2], ", ".join(measures)])
    return table(["drift", "reported", "hours, median", "10 %", "90 %", "first reported by"], rows, (0, 5))


def false_alarm_table(runs: Sequence[Run]) -> str:
    """Returns a table with a row for each kind of traffic without drift: the weeks in which it was reported."""
    rows = [
        [run["traffic"], run["weeks"], run["reported"], run["significant"], run["uncorrected"]]
        for run in runs
        if run["drift"] == "none"
    ]
    return table(["traffic", "weeks", "reported", "significant", "uncorrected"], rows)


FUNCTIONS = {function.__name__: function for function in (delay_table, false_alarm_table)}

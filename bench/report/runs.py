"""Tables of repeated runs: the mean of each figure over seeds or draws, and its standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import table

Run = Mapping[str, Any]
# A figure of a run: its key, or the keys that lead to it.
Path = str | Sequence[str]


def runs_table(
    runs: Sequence[Run],
    groups: Mapping[str, str],
    columns: Mapping[str, Path],
    digits: int = 3,
    scale: float = 1,
) -> str:
    """Returns a table with a row per group of runs and a column per figure, each as mean ± deviation.

    Args:
        runs: The runs, each with the keys of its group.
        groups: Heading of each key that distinguishes the groups; they keep the order of the runs.
        columns: Where to find the figure of each heading. A column, and a row, without any figure is left out.
        digits: Decimals of the figures; seconds have none.
        scale: Factor of the figures other than seconds.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in groups), []).append(run)
    cells = {
        group: [_cell([_at(run, path) for run in members], path, digits, scale) for path in columns.values()]
        for group, members in found.items()
    }
    kept = [index for index in range(len(columns)) if any(row[index] for row in cells.values())]
    headings = [*groups.values(), "runs", *(list(columns)[index] for index in kept)]
    rows = [[*group, len(found[group]), *(row[index] for index in kept)] for group, row in cells.items() if any(row)]
    return table(headings, rows, range(len(groups)))


def with_value(runs: Sequence[Run], key: str, *values: object) -> list[Run]:
    """Returns the runs whose key has one of the values, in the order of the values."""
    return [run for value in values for run in runs if run[key] == value]


def distinct(runs: Sequence[Run], key: str) -> list[Any]:
    """Returns the different values of a key, in the order of the runs."""
    return list(dict.fromkeys(run[key] for run in runs))


def _at(run: Run, path: Path) -> Any:
    value: Any = run
    for key in [path] if isinstance(path, str) else path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(values: Sequence[float | None], path: Path, digits: int, scale: float) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if (path if isinstance(path, str) else path[-1]).endswith("seconds"):
        digits, scale = (0 if statistics.fmean(known) >= 10 else 1), 1
    shown = f"{scale * statistics.fmean(known):,.{digits}f}"
    return shown if len(known) == 1 else f"{shown} ± {scale * statistics.stdev(known):,.{digits}f}"


FUNCTIONS = {function.__name__: function for function in (runs_table, with_value, distinct)}

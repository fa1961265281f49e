"""Markdown tables and number formats of the generated pages; the functions are available in the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Mapping[str, Mapping[str, Sequence[float]]]

# Columns in their order, with their headings; other figures come last under their own names.
HEADINGS = {
    "efficiency": "efficiency",
    "efficiency_without_client": "without client",
    "cpu_efficiency": "CPU efficiency",
    "texts_per_s": "texts/s",
    "texts_per_cpu_s": "texts per CPU second",
    "items_per_s": "texts/s",
    "tokens_per_s": "tokens/s",
    "padding": "padding",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "overhead_ms": "overhead, ms",
    "errors": "errors",
    "client_cores": "client, cores",
    "server_cpu_ms_per_text": "server, CPU ms/text",
    "min_over_mean": "min/mean",
    "max_over_mean": "max/mean",
    "job_s": "whole job, s",
    "speedup": "speed-up",
    "startup_s": "startup, s",
    "startup_cpu_s": "startup CPU, s",
    "idle_cpu_percent": "idle CPU, %",
    "rss_before_mb": "MB before",
    "rss_mb": "MB",
    "peak_rss_mb": "peak MB",
    "accuracy": "accuracy",
}
# In the result files only; with them the tables would be too wide.
HIDDEN = {"upper_bound", "messages", "answered", "single_text_ms", "p90_ms", "offered_per_s", "rate"}
_RATES = {"items_per_s", "texts_per_s", "texts_per_cpu_s", "tokens_per_s"}
INTEGERS = _RATES | {"errors", "rss_before_mb", "rss_mb", "peak_rss_mb"}
DIGITS = {"accuracy": 3, "cpu_efficiency": 3}
# Zero for a server whose processes leave its session, so that their time is not seen: BentoML's do.
UNKNOWN_IF_ZERO = {"server_cpu_ms_per_text"}


def spread_table(first: str, rows: Rows) -> str:
    """Returns a table with a row per name and a column per figure, each as median [lowest, highest]."""
    present = {figure for row in rows.values() for figure in row} - HIDDEN
    if all(row.get("errors", (0, 0, 0))[2] == 0 for row in rows.values()):
        present.discard("errors")
    columns = [figure for figure in HEADINGS if figure in present] + sorted(present - set(HEADINGS))
    cells = [[name, *(spread(row.get(figure), figure) for figure in columns)] for name, row in rows.items()]
    return table([first, *(HEADINGS.get(figure, figure) for figure in columns)], cells)


def count_table(first: str, rows: Mapping[str, Mapping[str, float]], unit: str = "") -> str:
    """Returns a table of integers with a column for each key that any row has."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [[name, *(integer(row[key]) if key in row else "" for key in columns)] for name, row in rows.items()]
    return table([first, *(f"{key}{unit}" for key in columns)], cells)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], text_columns: Sequence[int] = (0,)) -> str:
    """Returns a Markdown table; columns of numbers are aligned right, ``text_columns`` left."""
    rule = ["---" if number in text_columns else "--:" for number in range(len(headings))]
    lines = [headings, rule, *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(values: Sequence[float] | None, figure: str = "") -> str:
    """Formats [median, lowest, highest]; the range is omitted where it is empty, and all if the figure is unknown."""
    if values is None or (figure in UNKNOWN_IF_ZERO and not any(values)):
        return ""
    digits = _digits(figure, values[0])
    shown = [f"{value:,.{digits}f}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _digits(figure: str, value: float) -> int:
    if figure in INTEGERS or (figure.endswith("_ms") and value >= 100):
        return 0
    return 1 if figure.endswith("_ms") else DIGITS.get(figure, 2)


def integer(value: float) -> str:
    """Formats a number without decimals, with thousands separators."""
    return f"{value:,.0f}"


def fixed(value: float | None, digits: int = 2) -> str:
    """Formats a number with a fixed number of decimals; nothing for a missing one."""
    return "" if value is None else f"{value:,.{digits}f}"


def scientific(value: float) -> str:
    """Formats a small number with two digits."""
    return f"{value:.1e}".replace("e-0", "e-").replace("e+00", "")


def value_range(values: Sequence[float], digits: int | None = None) -> str:
    """Formats the lowest and the highest value as a range in words."""
    return " to ".join(f"{value:,g}" if digits is None else f"{value:,.{digits}f}" for value in values)


FUNCTIONS = {
    function.__name__: function
    for function in (spread_table, count_table, table, spread, integer, fixed, scientific, value_range)
}

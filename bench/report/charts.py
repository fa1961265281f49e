"""The charts of docs/benchmarks.md and the figures that each of them shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .chart_types import Panel, bars, intervals, lines

Report = dict[str, Any]

_OPEN_LOOP = "Poisson"
_EFFICIENCY = "efficiency"
_MEMORY = "resident memory, MB"
_MEMORY_FIGURES = {"peak_rss_mb": "peak", "rss_mb": "after the load", "rss_before_mb": "before the load"}
# By sweep: the title of the horizontal axis, and for each panel its title, its unit and its figures with their names.
_SCALING: dict[str, tuple[str, tuple[tuple[str, str, dict[str, str]], ...]]] = {
    "streams": (
        "streams",
        (
            ("Throughput", "texts/s", {"items_per_s": "server", "upper_bound": "upper bound"}),
            ("Texts per stream over the mean", "ratio", {"max_over_mean": "max", "min_over_mean": "min"}),
            ("Memory", _MEMORY, _MEMORY_FIGURES),
        ),
    ),
    "lengths": (
        "tokens per text",
        (
            ("Throughput", "tokens/s", {"tokens_per_s": "server"}),
            ("Efficiency", _EFFICIENCY, {"efficiency": "server"}),
            ("Memory", _MEMORY, _MEMORY_FIGURES),
        ),
    ),
    "heads": (
        "heads",
        (("Throughput", "texts/s", {"items_per_s": ""}), ("Memory after the load", _MEMORY, {"rss_mb": ""})),
    ),
    "shapes": ("messages", (("Memory", _MEMORY, {"rss_mb": "current", "peak_rss_mb": "peak so far"}),)),
}


def draw(reports: Mapping[str, Report], folder: Path) -> None:
    """Draws the charts of the reports that exist."""
    throughput = {
        name: reports[f"throughput_{name}"]["loads"] for name in ("int8", "fp32") if f"throughput_{name}" in reports
    }
    if throughput:
        # The throughput of an open loop is limited by what it sends.
        efficiencies = {
            variant: {load: one["efficiency"] for load, one in loads.items() if not load.startswith(_OPEN_LOOP)}
            for variant, loads in throughput.items()
        }
        bars(folder / "efficiency.svg", [Panel("", _EFFICIENCY, efficiencies, line=1.0)])
        latencies = {
            variant: {load: (one["p50_ms"][0], one["p99_ms"][0]) for load, one in loads.items()}
            for variant, loads in throughput.items()
        }
        intervals(folder / "latency.svg", latencies, "latency from p50 (dot) to p99 (tick), ms, logarithmic")
    if "comparison" in reports:
        bars(folder / "comparison.svg", list(_comparison(reports["comparison"]["servers"])))
    for sweep, series in reports.get("scaling", {}).get("sweeps", {}).items():
        title, panels = _SCALING[sweep]
        lines(folder / f"scaling-{sweep}.svg", [_panel(*panel, series) for panel in panels], title)


def _comparison(servers: Mapping[str, Any]) -> Iterator[Panel]:
    """Yields throughput for closed loops and p99 for open loops."""
    for load in dict.fromkeys(load for one in servers.values() for load in one["loads"]):
        unit, figure = ("p99, ms", "p99_ms") if load.startswith(_OPEN_LOOP) else ("texts/s", "items_per_s")
        values = {name: one["loads"][load][figure] for name, one in servers.items() if load in one["loads"]}
        yield Panel(load, unit, {"": values})


def _panel(title: str, unit: str, figures: Mapping[str, str], series: Mapping[str, Any]) -> Panel:
    return Panel(
        title,
        unit,
        {
            label or name: {int(value): found[figure] for value, found in values.items()}
            for name, values in series.items()
            for figure, label in figures.items()
        },
        line=1.0 if unit in {_EFFICIENCY, "ratio"} else None,
    )

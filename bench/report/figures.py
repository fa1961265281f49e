"""Which plots docs/benchmarks.md has, and what is on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .plots import Panel, bars, lines, spans

Report = dict[str, Any]

_OPEN_LOOP = "Poisson"
_SHARE = "share of the limit"
_MEMORY = "resident memory, MB"
# By sweep: the title of the axis of places, and for each panel its title, its unit and its figures with their names.
_GROWTH: dict[str, tuple[str, tuple[tuple[str, str, dict[str, str]], ...]]] = {
    "streams": (
        "streams",
        (
            ("Throughput", "texts/s", {"items_per_s": "server", "limit": "limit"}),
            ("Texts of a stream, over the mean", "ratio", {"most": "most", "least": "least"}),
            ("Memory", _MEMORY, {"peak_mb": "at most", "rss_mb": "after", "rss_before_mb": "before"}),
        ),
    ),
    "lengths": (
        "tokens of a text",
        (
            ("Throughput", "tokens/s", {"tokens_per_s": "server"}),
            ("Share", _SHARE, {"share": "server"}),
            ("Memory", _MEMORY, {"peak_mb": "at most", "rss_mb": "after", "rss_before_mb": "before"}),
        ),
    ),
    "heads": (
        "heads",
        (("Throughput", "texts/s", {"items_per_s": ""}), ("Memory after the load", _MEMORY, {"rss_mb": ""})),
    ),
    "shapes": ("messages", (("Memory", _MEMORY, {"rss_mb": "now", "peak_mb": "at most so far"}),)),
}


def draw(reports: Mapping[str, Report], folder: Path) -> None:
    """Draws what the reports have figures for."""
    serving = {name: reports[f"serving-{name}"]["loads"] for name in ("int8", "fp32") if f"serving-{name}" in reports}
    if serving:
        # An open loop reaches no more than what it sends.
        shares = {
            variant: {load: one["share"] for load, one in loads.items() if not load.startswith(_OPEN_LOOP)}
            for variant, loads in serving.items()
        }
        bars(folder / "serving.svg", [Panel("", _SHARE, shares, line=1.0)])
        latencies = {
            variant: {load: (one["p50_ms"][0], one["p99_ms"][0]) for load, one in loads.items()}
            for variant, loads in serving.items()
        }
        spans(folder / "latency.svg", latencies, "latency from p50 (dot) to p99 (bar), ms, logarithmic")
    if "rivals" in reports:
        bars(folder / "rivals.svg", list(_rivals(reports["rivals"]["servers"])))
    for sweep, series in reports.get("growth", {}).get("sweeps", {}).items():
        title, panels = _GROWTH[sweep]
        lines(folder / f"growth-{sweep}.svg", [_panel(*panel, series) for panel in panels], title)


def _rivals(servers: Mapping[str, Any]) -> Iterator[Panel]:
    """Throughput under closed loops, and p99 under open ones."""
    for load in dict.fromkeys(load for one in servers.values() for load in one["loads"]):
        unit, figure = ("p99, ms", "p99_ms") if load.startswith(_OPEN_LOOP) else ("texts/s", "items_per_s")
        values = {name: one["loads"][load][figure] for name, one in servers.items() if load in one["loads"]}
        yield Panel(load, unit, {"": values})


def _panel(title: str, unit: str, figures: Mapping[str, str], series: Mapping[str, Any]) -> Panel:
    return Panel(
        title,
        unit,
        {
            label or name: {int(place): values[figure] for place, values in places.items()}
            for name, places in series.items()
            for figure, label in figures.items()
        },
        line=1.0 if unit in {_SHARE, "ratio"} else None,
    )

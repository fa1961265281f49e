"""Chart types of docs/benchmarks.md, as SVG files that are reproducible byte by byte.

A value is ``[median, lowest, highest]``, as in the result files. The background is white, so that a chart is legible on
light and on dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

Value = Sequence[float]
# Distinguishable with colour blindness (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv"
_STYLE: dict[Any, Any] = {
    # Without a salt the ids inside a file are random.
    "svg.hashsalt": "polyhead",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_WIDTH = 9.0


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: Title above the axes.
        unit: Label of the value axis.
        series: By name, the value at each position: a number on a line, or the name of a bar.
        line: Reference value, drawn across the axes.
    """

    title: str
    unit: str
    series: Mapping[str, Mapping[Any, Value]]
    line: float | None = None


def lines(path: Path, panels: Sequence[Panel], x_label: str) -> None:
    """Draws values over numbers, with the panels side by side; the axis is logarithmic unless 0 is on it."""
    with mpl.rc_context(_STYLE):
        figure, all_axes = _figure(len(panels), height=3.0)
        for axes, panel in zip(all_axes, panels, strict=True):
            for number, (name, values) in enumerate(panel.series.items()):
                _line(axes, list(values), list(values.values()), name, number)
            positions = list(next(iter(panel.series.values())))
            if 0 not in positions:
                axes.set_xscale("log", base=2)
            axes.set_xticks(positions, [f"{position:,}" for position in positions])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(title=panel.title, xlabel=x_label, ylabel=panel.unit)
            if panel.line is not None:
                axes.axhline(panel.line, color="#555555", linewidth=0.8, linestyle="--")
            axes.set_ylim(bottom=0, top=1.08 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.grid(visible=True, axis="y")
            if len(panel.series) > 1:
                axes.legend(loc="best")
        _save(figure, path)


def bars(path: Path, panels: Sequence[Panel]) -> None:
    """Draws horizontal bars, with the panels side by side and the same names in all of them."""
    names = list(dict.fromkeys(name for panel in panels for one in panel.series.values() for name in one))
    series = list(dict.fromkeys(name for panel in panels for name in panel.series))
    with mpl.rc_context(_STYLE):
        figure, all_axes = _figure(len(panels), height=0.9 + 0.2 * len(names) * (len(series) + 0.6), sharey=True)
        thickness = 0.8 / len(series)
        for axes, panel in zip(all_axes, panels, strict=True):
            for name, values in panel.series.items():
                number = series.index(name)
                positions = [names.index(one) + (number - (len(series) - 1) / 2) * thickness for one in values]
                medians, errors = _error_bars(list(values.values()))
                style = {"color": _COLOURS[number], "error_kw": {"linewidth": 0.8}, "label": name}
                axes.barh(positions, medians, 0.9 * thickness, xerr=errors, **style)
            if panel.line is not None:
                axes.axvline(panel.line, color="#555555", linewidth=0.8, linestyle="--")
            axes.set(title=panel.title, xlabel=panel.unit)
            axes.set_xlim(left=0)
            axes.grid(visible=True, axis="x")
        all_axes[0].set_yticks(range(len(names)), names)
        all_axes[0].invert_yaxis()
        if len(series) > 1:
            handles, labels = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper right", ncols=len(series))
        _save(figure, path)


def intervals(path: Path, series: Mapping[str, Mapping[str, tuple[float, float]]], title: str) -> None:
    """Draws an interval, such as p50 to p99, for each name on a logarithmic axis."""
    names = list(dict.fromkeys(name for one in series.values() for name in one))
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _figure(1, height=0.9 + 0.2 * len(names) * (len(series) + 0.6))
        for number, (label, values) in enumerate(series.items()):
            positions = [names.index(name) + (number - (len(series) - 1) / 2) * 0.3 for name in values]
            low, high = ([pair[side] for pair in values.values()] for side in (0, 1))
            colour = _COLOURS[number]
            axes.hlines(positions, low, high, color=colour, linewidth=1.5)
            axes.plot(low, positions, "o", color=colour, markersize=4, label=label)
            axes.plot(high, positions, "|", color=colour, markersize=8, markeredgewidth=1.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel(title)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x")
        if len(series) > 1:
            figure.legend(loc="outside upper right", ncols=len(series))
        _save(figure, path)


def _figure(panels: int, height: float, *, sharey: bool = False) -> tuple[Figure, Sequence[Any]]:
    # pyplot would require a display.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]


def _line(axes: Any, positions: Sequence[float], values: Sequence[Value], name: str, number: int) -> None:
    medians, errors = _error_bars(values)
    style = {"color": _COLOURS[number], "marker": _MARKERS[number], "markersize": 4, "linewidth": 1.2, "capsize": 2}
    axes.errorbar(positions, medians, yerr=errors, label=name, **style)


def _error_bars(values: Sequence[Value]) -> tuple[list[float], list[list[float]]]:
    """Returns the medians, and the distances of the lowest and the highest values from them."""
    medians = [median for median, _, _ in values]
    return medians, [[median - low for median, low, _ in values], [high - median for median, _, high in values]]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The date and the version of matplotlib would change the bytes.
    figure.savefig(path, metadata={"Date": None, "Creator": None})

"""SVG charts. They are drawn here because those of a plotting library are ten times the size and require fonts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from markupsafe import Markup

# The palette of Okabe and Ito, distinguishable with color blindness, darker colors first.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4a9c", "#444444")
# A longer series is averaged over neighboring points to reduce noise.
_MAX_POINTS = 120
_MAX_TICK_INTERVALS = 5
# Narrowest range of values that ticks of 12 decimal places divide.
_MIN_WIDTH = 1e-10
# More dots would hide the line.
_MAX_DOTS = 12
_KEY: dict[str, Any] = {"width": 22, "height": 8, "aria_hidden": "true"}
# None is a gap: nothing was measured there.
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: Name in the legend.
        points: Points, from left to right.
        color: Index into ``COLORS``.
        dashed: Whether the line is dashed.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dashed: bool = False

    @property
    def has_values(self) -> bool:
        """Whether any point is not a gap."""
        return any(y is not None for _, y in self.points)


class _Frame(NamedTuple):
    """Mapping of values to coordinates of the drawing, whose unit is about a pixel."""

    low: tuple[float, float]
    high: tuple[float, float]
    left: float = 46
    right: float = 414
    top: float = 20
    bottom: float = 206

    def x(self, value: float) -> float:
        return round(self.left + (value - self.low[0]) / (self.high[0] - self.low[0]) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (value - self.low[1]) / (self.high[1] - self.low[1]) * (self.bottom - self.top), 1)


def line_chart(title: str, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draws a line chart over the steps of a run.

    Args:
        title: Title of the chart.
        series: The lines; those without values are omitted.
        marks: Steps to mark, with their labels.
    """
    drawn = [Series(one.name, _thin(one.points), one.color, one.dashed) for one in series if one.has_values]
    values = [y for one in drawn for _, y in one.points if y is not None] or [0.0]
    ticks = _ticks(min(values), max(values))
    steps = _ticks(0, max([x for one in drawn for x, _ in one.points] or [1]))
    frame = _Frame((0, ticks[0]), (steps[-1], ticks[-1]))
    parts = [
        *_axes(frame, steps, ticks, "step"),
        *(_mark(frame, step, name) for step, name in marks),
        *(_line(frame, one) for one in drawn),
    ]
    return _figure(title, parts, drawn if len(drawn) > 1 else [])


def reliability_chart(title: str, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> Markup:
    """Draws a reliability diagram: accuracy over confidence by bin, before and after calibration.

    On the diagonal, accuracy equals confidence.

    Args:
        title: Title of the chart.
        before: The bins of ``evaluation.json`` at temperature 1.
        after: The bins at the fitted temperature. The area of a dot grows with its number of rows.
    """
    frame, ticks = _Frame((0.0, 0.0), (1.0, 1.0), right=232), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    lines = [
        Series(name, [(one["confidence"], one["accuracy"]) for one in bins if one["count"]], color, dashed=color > 0)
        for name, bins, color in (("calibrated", after, 0), ("uncalibrated", before, 1))
    ]
    rows = sum(one["count"] for one in after)
    dots = [
        _dot(frame, (one["confidence"], one["accuracy"]), 2 + 8 * math.sqrt(one["count"] / rows), COLORS[0])
        for one in after
        if one["count"]
    ]
    diagonal = _rule("diagonal", frame.left, frame.bottom, frame.right, frame.top)
    parts = [*_axes(frame, ticks, ticks, "confidence"), diagonal, *(_line(frame, one) for one in lines), *dots]
    return _figure(title, parts, lines, width=250)


def coverage_chart(title: str, curve: Sequence[dict[str, float]], promised: float, coverage: float | None) -> Markup:
    """Draws a risk-coverage curve: accuracy over the share of texts that are answered, with 95 % intervals.

    Args:
        title: Title of the chart.
        curve: Points of ``evaluation.json``, lowest coverage first, each with the ends of its interval.
        promised: Promised accuracy, a horizontal line.
        coverage: Coverage at the threshold, a vertical line; None for none.
    """
    ticks = _ticks(min(promised, *(one["low"] for one in curve)), 1.0)
    across = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    frame = _Frame((0.0, ticks[0]), (1.0, ticks[-1]), right=232)
    edges = [(one["coverage"], one["high"]) for one in curve] + [(one["coverage"], one["low"]) for one in curve[::-1]]
    outline = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in edges)
    line = Series("accuracy", [(one["coverage"], one["accuracy"]) for one in curve])
    parts = [
        *_axes(frame, across, ticks, "coverage"),
        _element("polygon", points=outline, fill=COLORS[0], fill_opacity=0.15),
        _rule("diagonal", frame.left, frame.y(promised), frame.right, frame.y(promised)),
        *([] if coverage is None else [_rule("mark", frame.x(coverage), frame.top, frame.x(coverage), frame.bottom)]),
        _line(frame, line),
    ]
    return _figure(title, parts, [], width=250)


def scatter_chart(title: str, points: Sequence[Sequence[float]]) -> Markup:
    """Draws the predictions of a regression head over the true numbers; on the diagonal, they are equal.

    Args:
        title: Title of the chart.
        points: True number and prediction of each row.
    """
    values = [value for point in points for value in point]
    ticks = _ticks(min(values), max(values))
    frame = _Frame((ticks[0], ticks[0]), (ticks[-1], ticks[-1]), right=232)
    diagonal = _rule("diagonal", frame.left, frame.bottom, frame.right, frame.top)
    dots = [_dot(frame, (true, predicted), 2.4, COLORS[0]) for true, predicted in points]
    return _figure(title, [*_axes(frame, ticks, ticks, "true number"), diagonal, *dots], [], width=250)


def interval_bar(value: float, interval: Sequence[float], baseline: float) -> Markup:
    """Draws a value between 0 and 1 with its interval and the majority baseline."""
    at, low, high, base = (round(4 + 252 * share, 1) for share in (value, *interval, baseline))
    parts = [
        _rule("rail", 4, 11, 256, 11),
        _rule("gain", base, 11, at, 11),
        _element("rect", class_="range", x=low, y=6, width=round(max(high - low, 1), 1), height=10, rx=2),
        _rule("base", base, 3, base, 19),
        _element("circle", class_="dot", cx=at, cy=11, r=3.5),
    ]
    description = f"{value:.1%}, majority baseline {baseline:.1%}"
    return _element("svg", *parts, class_="interval-bar", viewBox="0 0 260 22", role="img", aria_label=description)


def _figure(title: str, parts: Sequence[Markup], legend: Sequence[Series], width: int = 430) -> Markup:
    keys = [
        _element("span", _element("svg", _element("line", x1=1, y1=4, x2=21, y2=4, **_stroke(one)), **_KEY), one.name)
        for one in legend
    ]
    drawing = _element("svg", *parts, viewBox=f"0 0 {width} 244", role="img", aria_label=title)
    return _element("figure", _element("figcaption", title), drawing, _element("div", *keys, class_="legend"))


def _axes(frame: _Frame, across: Sequence[float], up: Sequence[float], name: str) -> list[Markup]:
    rules = [_rule("rule", frame.left, frame.y(tick), frame.right, frame.y(tick)) for tick in up]
    left = [_text(_number(tick), frame.left - 6, frame.y(tick) + 4, "end") for tick in up]
    below = [_text(_number(tick), frame.x(tick), frame.bottom + 16, "middle") for tick in across]
    return [*rules, *left, *below, _text(name, (frame.left + frame.right) / 2, frame.bottom + 33, "middle")]


def _mark(frame: _Frame, step: float, name: str) -> Markup:
    x = frame.x(step)
    return _rule("mark", x, frame.top - 12, x, frame.bottom) + _text(name, x + 4, frame.top - 4, "start")


def _line(frame: _Frame, series: Series) -> Markup:
    """Draws a line for each run of points without a gap, and dots on a short series and on single points."""
    runs = [
        [(x, y) for x, y in points if y is not None]
        for known, points in groupby(series.points, key=lambda point: point[1] is not None)
        if known
    ]
    few = sum(map(len, runs)) <= _MAX_DOTS
    parts = []
    for run in runs:
        points = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in run)
        parts.append(_element("polyline", points=points, fill="none", **_stroke(series)))
        parts += [_dot(frame, point, 2.4, _color(series)) for point in run if few or len(run) == 1]
    return Markup("").join(parts)


def _dot(frame: _Frame, point: tuple[float, float], radius: float, color: str) -> Markup:
    center = {"cx": frame.x(point[0]), "cy": frame.y(point[1]), "r": round(radius, 1)}
    return _element("circle", **center, fill=color, fill_opacity=0.6)


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return _element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return _element("text", text, x=x, y=y, text_anchor=anchor)


def _element(name: str, *children: str, **attributes: str | float) -> Markup:
    """Builds an SVG or HTML element; escapes text. ``class_`` and ``text_anchor`` stand for class and text-anchor."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))


def _color(series: Series) -> str:
    return COLORS[series.color % len(COLORS)]


def _stroke(series: Series) -> dict[str, Any]:
    return {"stroke": _color(series), "stroke_width": 1.8, **({"stroke_dasharray": "5 4"} if series.dashed else {})}


def _thin(points: Sequence[Point]) -> list[Point]:
    """Averages neighboring points; a gap remains only where a whole group has no values."""
    size = math.ceil(len(points) / _MAX_POINTS)
    thinned: list[Point] = []
    for start in range(0, len(points), size or 1):
        group = points[start : start + size]
        known = [(x, y) for x, y in group if y is not None]
        x = sum(x for x, _ in known or group) / len(known or group)
        thinned.append((x, sum(y for _, y in known) / len(known) if known else None))
    return thinned


def _ticks(low: float, high: float) -> list[float]:
    """Returns evenly spaced round numbers that cover the range from ``low`` to ``high``."""
    # Values that differ by rounding alone are one value.
    scale = max(abs(low), abs(high))
    width = next((one for one in (high - low, scale) if one > max(_MIN_WIDTH, 1e-9 * scale)), 1.0)
    power = 10.0 ** math.floor(math.log10(width / _MAX_TICK_INTERVALS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if width / step <= _MAX_TICK_INTERVALS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""Charts are well-formed SVG with the right values and escaped text."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup
from polyhead_training.reporting.charts import COLORS, Series, interval_bar, line_chart, reliability_chart

HOSTILE = "<script>alert('no')</script>"


def _parse(chart: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart))  # noqa: S314 - made here


def _points(chart: Markup) -> list[list[tuple[float, float]]]:
    lines = [line.attrib["points"].split() for line in _parse(chart).iter("polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line)] for line in lines]


def _texts(chart: Markup) -> list[str]:
    return [text for element in _parse(chart).iter() if (text := element.text)]


def test_higher_values_are_higher_and_later_steps_further_right() -> None:
    [line] = _points(line_chart("loss", [Series("a", [(10, 1.0), (20, 3.0), (30, 2.0)])]))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x1 < x2 < x3
    assert y2 < y3 < y1
    assert y3 == pytest.approx((y1 + y2) / 2, abs=0.1)


def test_ticks_are_round_numbers_around_the_values() -> None:
    texts = _texts(line_chart("accuracy", [Series("a", [(0, 0.713), (4000, 0.942)])]))
    assert [text for text in texts if text.startswith("0.")] == ["0.7", "0.75", "0.8", "0.85", "0.9", "0.95"]
    assert [text for text in texts if "000" in text] == ["1,000", "2,000", "3,000", "4,000"]


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-8, 1e6])
def test_constant_line_is_drawn(value: float) -> None:
    [line] = _points(line_chart("constant", [Series("a", [(1, value), (2, value)])]))
    assert line[0][1] == line[1][1]
    assert 20 <= line[0][1] <= 206


def test_long_series_is_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 2_401)]
    [line] = _points(line_chart("noise", [Series("a", points)]))
    assert len(line) == 120
    assert len({y for _, y in line}) == 1


def test_missing_values_are_gaps_and_single_points_remain_visible() -> None:
    series = Series("a", [(step, None if step % 20 == 9 else 1.0) for step in range(60)] + [(60, None), (61, 2.0)])
    chart = line_chart("loss", [series])
    assert [len(line) for line in _points(chart)] == [9, 19, 19, 10, 1]
    assert len(list(_parse(chart).iter("circle"))) == 1


def test_gap_does_not_pull_the_average_of_a_long_series_down() -> None:
    points = [(float(step), 1.0 if step % 2 else None) for step in range(1, 2_401)]
    [line] = _points(line_chart("loss", [Series("a", points)]))
    assert len(line) == 120
    # A constant line is drawn at one height, and so is this one.
    assert len({y for _, y in line}) == 1


def test_series_of_gaps_alone_is_omitted() -> None:
    assert _points(line_chart("loss", [Series("a", [(1, None), (2, None)])])) == []


def test_legend_shows_the_lines_with_colors_and_dashes() -> None:
    chart = line_chart("loss", [Series("a", [(1, 1)]), Series("b", [(1, 2)], 1, dashed=True), Series("empty", [])])
    root = _parse(chart)
    keys = {"".join(span.itertext()): next(span.iter("line")).attrib for span in root.iter("span")}
    assert list(keys) == ["a", "b"]
    assert keys["a"]["stroke"] == COLORS[0]
    assert (keys["b"]["stroke"], keys["b"]["stroke-dasharray"]) == (COLORS[1], "5 4")


def test_single_line_has_no_legend() -> None:
    assert "a" not in _texts(line_chart("loss", [Series("a", [(1, 1)])]))


def test_marks_show_the_start_of_a_stage() -> None:
    chart = line_chart("loss", [Series("a", [(0, 1), (100, 2)])], [(50, "second")])
    [mark] = [line for line in _parse(chart).iter("line") if line.attrib.get("class") == "mark"]
    [[(left, _), (right, _)]] = _points(chart)
    assert float(mark.attrib["x1"]) == pytest.approx((left + right) / 2, abs=0.1)
    assert "second" in _texts(chart)


def test_text_is_escaped_everywhere() -> None:
    chart = line_chart(HOSTILE, [Series(HOSTILE, [(1, 1)]), Series("b", [(1, 1)])], [(1, HOSTILE)])
    assert "<script>" not in chart
    # The caption and the mark, and the legend, where it follows the key's drawing.
    assert _texts(chart).count(HOSTILE) == 2
    assert HOSTILE in ["".join(span.itertext()) for span in _parse(chart).iter("span")]


def _bins(**values: tuple[int, float, float]) -> list[dict[str, Any]]:
    empty = {"count": 0, "confidence": None, "accuracy": None}
    return [dict(zip(empty, found, strict=True)) for found in values.values()] + [empty]


def test_reliability_puts_a_calibrated_bin_on_the_diagonal() -> None:
    chart = reliability_chart("r", before=_bins(a=(10, 0.9, 0.6)), after=_bins(a=(2, 0.5, 0.5), b=(8, 0.7, 0.7)))
    [diagonal] = [line.attrib for line in _parse(chart).iter("line") if line.attrib.get("class") == "diagonal"]
    x1, y1, x2, y2 = (float(diagonal[key]) for key in ("x1", "y1", "x2", "y2"))
    after, before = _points(chart)
    for x, y in after:
        assert (x - x1) / (x2 - x1) == pytest.approx((y - y1) / (y2 - y1), abs=0.01)
    [(x, y)] = before
    assert (y - y1) / (y2 - y1) == pytest.approx(0.6, abs=0.01)
    assert (x - x1) / (x2 - x1) == pytest.approx(0.9, abs=0.01)


def test_bins_with_more_rows_have_larger_dots() -> None:
    chart = reliability_chart("r", before=[], after=_bins(a=(2, 0.5, 0.5), b=(80, 0.7, 0.7)))
    radii = [float(dot.attrib["r"]) for dot in _parse(chart).iter("circle") if float(dot.attrib["r"]) != 2.4]
    assert radii[0] < radii[1]


def test_interval_bar_shows_value_interval_and_baseline() -> None:
    root = _parse(interval_bar(0.75, [0.7, 0.8], 0.5))
    [dot], [box] = list(root.iter("circle")), list(root.iter("rect"))
    [base] = [line for line in root.iter("line") if line.attrib["class"] == "base"]
    assert float(dot.attrib["cx"]) == 4 + 252 * 0.75
    assert float(box.attrib["x"]) == pytest.approx(4 + 252 * 0.7, abs=0.1)
    assert float(box.attrib["width"]) == pytest.approx(252 * 0.1, abs=0.15)
    assert float(base.attrib["x1"]) == 4 + 252 * 0.5
    assert root.attrib["aria-label"] == "75.0%, majority baseline 50.0%"


@pytest.mark.parametrize("values", [(0.3, 0.1 + 0.2), (1 / 6, 1 / 6 + 3e-17), (0.0, 1e-15), (1e-15, 1e-15)])
def test_values_that_differ_by_rounding_alone_are_drawn_as_one(values: tuple[float, float]) -> None:
    lines = [Series(name, [(1.0, value)]) for name, value in zip("ab", values, strict=True)]
    assert "nan" not in line_chart("accuracy", lines)

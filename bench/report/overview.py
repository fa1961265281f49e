"""The chart of README.md: throughput of polyhead and other servers, as an SVG that adapts to light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

Report = dict[str, Any]

LOADS = {
    "1 in flight": "1 request in flight",
    "8 in flight": "8 requests in flight",
    "64 in flight": "64 requests in flight",
}
NAMES = {"mlserver": "MLServer", "litserve": "LitServe", "ray": "Ray Serve", "bentoml": "BentoML"}
WIDTH = 880
_LEFT, _PANEL, _GAP = 150, 222, 18
_TOP, _ROW, _BAR = 108, 30, 18
# Space to the right of the longest bar for its value.
_VALUE_WIDTH = 44


def overview(report: Report) -> str:
    """Renders the chart from the result file of ``bench.comparison.compare``."""
    servers = report["servers"]
    highest = max(one["loads"][load]["items_per_s"][2] for one in servers.values() for load in LOADS)
    scale = (_PANEL - _VALUE_WIDTH) / highest
    rows = [
        {"name": NAMES.get(name, name), "version": one["version"], "own": name == "polyhead", "y": _TOP + _ROW * number}
        for number, (name, one) in enumerate(servers.items())
    ]
    panels = [
        {
            "title": title,
            "x": _LEFT + number * (_PANEL + _GAP),
            "bars": [_bar(one["loads"][load]["items_per_s"], scale) for one in servers.values()],
        }
        for number, (load, title) in enumerate(LOADS.items())
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("overview.svg.jinja").render(
        report=report, rows=rows, panels=panels, width=WIDTH, height=_TOP + _ROW * len(rows) + 34, bar=_BAR
    )


def _bar(spread: list[float], scale: float) -> dict[str, float]:
    median, lowest, highest = spread
    return {
        "length": round(median * scale, 1),
        "lowest": round(lowest * scale, 1),
        "highest": round(highest * scale, 1),
        "value": round(median),
    }

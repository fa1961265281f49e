"""The training report of a run: one self-contained HTML page.

::

    run.json, data.json, metrics.jsonl, evaluation.json --read_results--> Results --report.html.jinja--> report.html
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from polyhead_training.runs.run_directory import REPORT_NAME
from polyhead_training.units import format_duration

from .charts import Point, Series, interval_bar, line_chart, reliability_chart
from .results import Results, implausible, read_results

# Labels in a confusion matrix that fits on a page.
_MAX_SHOWN_LABELS = 20
_MAX_SHOWN_CHARACTERS = 280
_NO_BREAK = "\N{NO-BREAK SPACE}"


def write_report(folder: Path) -> None:
    """Writes ``report.html`` into a run directory.

    Args:
        folder: The run's files; ``data.json`` and ``metrics.jsonl`` may be missing.

    Raises:
        RunError: A file is missing or damaged.
    """
    (folder / REPORT_NAME).write_text(render_report(read_results(folder)), encoding="utf-8")


def render_report(results: Results) -> str:
    """Renders the report as HTML; all texts from the data are escaped."""
    return _template().render(
        run=results.run,
        rows=_rows(results),
        warnings=list(implausible(results.splits)),
        similarity=results.similarity,
        curves=_curves(results),
        heads=[_head(results, head) for head in results.heads],
        data=results.data,
        config=json.dumps(results.run["config"], indent=2, ensure_ascii=False),
        seconds=results.metrics[-1]["seconds"] if results.metrics else None,
        interval_bar=interval_bar,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polyhead_training.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "range": _range,
        "short": _short,
        "figure": _figure,
        "duration": format_duration,
    }
    return environment.get_template("report.html.jinja")


def _rows(results: Results) -> list[dict[str, Any]]:
    """Returns the metrics of every head on every split with labels for it, test first."""
    order = sorted(results.splits, key=lambda split: (split != "test", split))
    return [
        {"head": head["name"], "split": split, **results.splits[split][head["name"]]}
        for head in results.heads
        for split in order
        if results.splits[split].get(head["name"], {}).get("rows")
    ]


def _curves(results: Results) -> list[Markup]:
    """Draws the losses, the learning rate and the validation metrics over the steps."""
    steps = [line for line in results.metrics if "loss" in line]
    epochs = [line for line in results.metrics if "validation" in line]
    if not results.metrics:
        return []
    starts, last = [], 0
    for stage, lines in groupby(results.metrics, key=lambda line: line["stage"]):
        starts.append((float(last), str(stage)))
        last = list(lines)[-1]["step"]
    names = [head["name"] for head in results.heads]
    losses = [Series(name, _points(steps, "losses", name), color) for color, name in enumerate(names)]
    distillation = Series("distillation, 1 - cosine", _points(steps, "distillation"), len(names), dashed=True)
    charts = [
        ("Training loss by head (nats)", [*losses, distillation]),
        ("Learning rate", [Series("learning rate", _points(steps, "learning_rate"))]),
    ]
    for title, measure in (("macro-F1", "macro_f1"), ("accuracy", "accuracy")):
        scores = [Series(name, _points(epochs, "validation", name, measure), color) for color, name in enumerate(names)]
        charts.append((f"Validation {title} after each epoch", scores))
    return [line_chart(title, series, starts) for title, series in charts if any(one.has_values for one in series)]


def _points(lines: Sequence[dict[str, Any]], *path: str) -> list[Point]:
    """Returns a value of each line by its step; None, a gap, where the line lacks the value."""
    points = []
    for line in lines:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        points.append((float(line["step"]), None if value is None else float(value)))
    return points


def _head(results: Results, head: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a head's section, for the head's reported split."""
    split = results.best_split(head["name"])
    if split is None:
        return {**head, "split": None}
    found = results.splits[split][head["name"]]
    before, after = found["uncalibrated"]["reliability"], found["reliability"]
    return {
        **head,
        "split": split,
        "found": found,
        "table": sorted(found["labels"].items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"])),
        "confusion": _confusion(list(found["labels"]), found["confusion"]),
        "reliability": reliability_chart("Reliability diagram", before, after),
        "best_threshold": results.splits.get("validation", {}).get(head["name"], {}).get("best_threshold"),
    }


def _confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Selects the most confused labels, in label order, and their part of the confusion matrix."""
    indices = range(len(labels))
    errors = [sum(counts[index]) + sum(row[index] for row in counts) - 2 * counts[index][index] for index in indices]
    shown = sorted(sorted(indices, key=lambda index: -errors[index])[:_MAX_SHOWN_LABELS])
    return {
        "labels": [labels[index] for index in shown],
        "rows": [(labels[true], [_cell(counts, true, predicted) for predicted in shown]) for true in shown],
        "omitted": len(labels) - len(shown),
    }


def _cell(counts: Sequence[Sequence[int]], true: int, predicted: int) -> dict[str, Any]:
    share = counts[true][predicted] / (sum(counts[true]) or 1)
    return {"count": counts[true][predicted], "share": round(share, 3), "correct": true == predicted}


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}{_NO_BREAK}%"


def _range(found: dict[str, Any], name: str, digits: int = 1) -> str:
    """Formats the interval of a metric in percent."""
    low, high = found["intervals"][name]
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(text: str, limit: int = _MAX_SHOWN_CHARACTERS) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " …"

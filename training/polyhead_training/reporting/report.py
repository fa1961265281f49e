"""The training report of a run: one self-contained HTML page.

::

    run.json, data.json, metrics.jsonl, evaluation.json --read_results--> Results --report.html.jinja--> report.html
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from polyhead_training.measures import measures_of, metric_tables, show_spread
from polyhead_training.runs.run_directory import REPORT_NAME
from polyhead_training.units import format_duration

from .charts import Point, Series, coverage_chart, interval_bar, line_chart, reliability_chart, scatter_chart
from .embedding_table import embedding_rows
from .model_card import thresholds
from .results import Results, implausible, read_results

# Labels in a confusion matrix that fits on a page.
_MAX_SHOWN_LABELS = 20
_MAX_SHOWN_CHARACTERS = 280
# Scores of an epoch that are drawn, by title.
_EPOCH_MEASURES = {
    "macro-F1": "macro_f1",
    "accuracy": "accuracy",
    "mean average precision": "mean_average_precision",
    "quadratic weighted kappa": "qwk",
    "R2": "r2",
}
# Likely mistakes per head on the page; label_noise.json has all.
_MAX_SUSPECTS = 100
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
        headlines=list(_headlines(results)),
        rows=[row for row in _rows(results) if "kind" not in row],
        others=_other_tables(results),
        warnings=list(implausible(results.splits)),
        similarity=results.similarity,
        repeats=_repeats(results),
        collected=results.collected,
        embedding=embedding_rows(results.similarity, results.retrieval),
        retrieval=results.retrieval,
        curves=_curves(results),
        heads=[_head(results, head) for head in results.heads],
        data=results.data,
        config=json.dumps(results.run["config"], indent=2, ensure_ascii=False),
        seconds=results.metrics[-1]["seconds"] if results.metrics else None,
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
        "bounds": _bounds,
        "spread": show_spread,
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


def _other_tables(results: Results) -> list[dict[str, Any]]:
    """Returns a table for each set of metrics of heads that do not predict exactly one label."""
    others: dict[str, dict[str, Any]] = {}
    for row in _rows(results):
        if "kind" in row:
            others.setdefault(row["split"], {})[row["head"]] = row
    notes = {tuple(one.keys): one.note for heads in others.values() for one in map(measures_of, heads.values())}
    return [{"titles": titles, "rows": rows, "note": notes[tuple(titles)]} for titles, rows in metric_tables(others)]


def _headlines(results: Results) -> Iterator[dict[str, Any]]:
    """Yields the main metric of each head, with its interval and its baseline."""
    for head in results.heads:
        if (split := results.best_split(head["name"])) is None:
            continue
        found = results.splits[split][head["name"]]
        measures = measures_of(found)
        *_, baseline_key = measures.keys.values()
        value, baseline = found[measures.main], found[baseline_key]
        low, high = found["intervals"].get(measures.main) or (value, value)
        # The bar of an error shows it as a share of the baseline's error.
        unit = 1.0 if measures.is_share else max(high, baseline) or 1.0
        is_better = low > baseline if measures.is_share else high < baseline
        show = _percent if measures.is_share else _figure
        gain = f"{100 * (value - baseline):.1f} points above"
        yield {
            "name": head["name"],
            "split": split,
            "metric": next(iter(measures.keys)),
            "value": show(value),
            "bar": interval_bar(value / unit, (low / unit, high / unit), baseline / unit),
            "interval": _range(found, measures.main) if measures.is_share else f"{low:.3f} to {high:.3f}",
            "verdict": (gain if measures.is_share else "below") if is_better else None,
            "reverse": "not significantly above" if measures.is_share else "not significantly below",
            "baseline": f"{measures.baseline}, {show(baseline)}",
        }


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
    sources = list(next((line["embedding"] for line in steps if "embedding" in line), {}))

    def loss(*path: str) -> list[Point]:
        points = _points(steps, *path)
        # A step trains on labelled rows or on one source, so that the other losses have no value in it.
        return [(x, y) for x, y in points if y is not None] if sources else points

    losses = [Series(name, loss("losses", name), color) for color, name in enumerate(names)]
    distillation = Series("distillation, 1 - cosine", loss("distillation"), len(names), dashed=True)
    charts = [
        ("Training loss by head (nats)", [*losses, distillation]),
        (
            "Training loss by embedding source",
            [Series(name, loss("embedding", name), color) for color, name in enumerate(sources)],
        ),
        ("Learning rate", [Series("learning rate", _points(steps, "learning_rate"))]),
    ]
    for title, measure in _EPOCH_MEASURES.items():
        scores = [Series(name, _points(epochs, "validation", name, measure), color) for color, name in enumerate(names)]
        charts.append((f"Validation {title} after each epoch", scores))
    spearman = Series("data.similarity", _points(epochs, "validation", "data.similarity", "spearman"))
    charts.append(("Spearman correlation after each epoch", [spearman]))
    return [line_chart(title, series, starts) for title, series in charts if any(one.has_values for one in series)]


def _repeats(results: Results) -> dict[str, Any] | None:
    """Returns the content of the section on the runs of several seeds or folds; None for a single run."""
    if results.repeats is None:
        return None
    found = results.repeats["spread"]
    parts = {(split, head): metrics for split, heads in found.items() for head, metrics in heads.items()}
    if similarity := found.get("similarity"):
        parts = {key: metrics for key, metrics in parts.items() if key[0] != "similarity"}
        parts["similarity", "embedding"] = similarity
    noise = {
        head: {**one, "suspects": one["suspects"][:_MAX_SUSPECTS], "omitted": max(0, one["found"] - _MAX_SUSPECTS)}
        for head, one in (results.label_noise or {}).items()
    }
    return {**results.repeats, "parts": parts, "noise": noise}


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
    labels, confusion, before = found.get("labels", {}), found.get("confusion"), found["uncalibrated"]
    return {
        **head,
        "split": split,
        "found": found,
        "thresholds": thresholds(None, head.get("thresholds")) or _threshold(found),
        "table": sorted(labels.items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"])),
        "confusion": _confusion(list(labels), confusion) if confusion else None,
        "reliability": before and reliability_chart("Reliability diagram", before["reliability"], found["reliability"]),
        "scatter": scatter_chart("Prediction over true number", found["points"]) if found.get("points") else None,
        "abstention": found.get("abstention"),
        "coverage": _coverage(found.get("abstention")),
        "prediction_sets": found.get("prediction_sets"),
        "best_threshold": results.splits.get("validation", {}).get(head["name"], {}).get("best_threshold"),
    }


def _coverage(abstention: Mapping[str, Any] | None) -> Markup | None:
    if abstention is None or not abstention["curve"]:
        return None
    promised, coverage = abstention["promise"]["accuracy"], abstention["coverage"]
    return coverage_chart("Accuracy over coverage", abstention["curve"], promised, coverage)


def _threshold(found: Mapping[str, Any]) -> str:
    return "" if found.get("threshold") is None else _figure(found["threshold"], 2)


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


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}{_NO_BREAK}%"


def _range(found: dict[str, Any], name: str) -> str:
    """Formats the interval of a metric in percent."""
    low, high = found["intervals"][name]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _bounds(found: dict[str, Any]) -> str:
    """Formats the only interval of a value in percent."""
    return _range({"intervals": found}, "interval")


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(text: str, limit: int = _MAX_SHOWN_CHARACTERS) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + " …"

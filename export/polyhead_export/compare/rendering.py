"""A comparison as a table for the terminal, as JSON, and as one self-contained HTML page.

Texts appear only where they were asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jinja2
from polyhead_training.terminal import format_table

from .agreement import EmbeddingAgreement, HeadAgreement, Share
from .comparison import Comparison
from .models import Answers

_SPACES = {
    "same": "the same space: vectors of both models can stand in one index",
    "comparable": "other weights, but close: vectors of both models can stand in one index",
    "other": "another space: an index must be built again",
    "other size": "another size: an index must be built again",
}
# Most frequent changes of a head in the table of the terminal.
_SHOWN_CHANGES = 5
_MAX_SHOWN_CHARACTERS = 280


def as_table(found: Comparison) -> str:
    """Formats a comparison for a terminal."""
    lines = [
        f"{len(found.rows):,} texts",
        *(f"{name}: {_model(side)}" for name, side in (("old", found.old), ("new", found.new))),
        f"embedding: {_SPACES[found.embedding.space]}; {_embedding(found.embedding)}",
    ]
    header = ["head", "changed", "95 %", "weighted", "difference", "accuracy old", "new", "p"]
    rows = [_head_row(one) for one in found.heads]
    if rows:
        lines += ["", format_table(header, rows, numeric=header[1:])]
    for one in found.heads:
        lines += [f"{one.name}: {change}" for change in _changes(one)]
    lines += [f"{name}: not compared: {reason}" for name, reason in found.not_compared.items()]
    return "\n".join(lines)


def as_json(found: Comparison, texts: int = 0) -> str:
    """Formats a comparison as a JSON object, with up to ``texts`` changed texts of each head."""
    heads = {}
    for one in found.heads:
        fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        for name in ("name", "changes", "answers"):
            del fields[name]
        fields |= {
            "changed": one.changed and one.changed._asdict(),
            "matrix": one.matrix.tolist(),
            "accuracy": one.accuracy and dataclasses.asdict(one.accuracy),
        }
        if texts:
            fields["texts"] = list(_texts(found, one, texts))
        heads[one.name] = fields
    content = {
        "texts": len(found.rows),
        "old": _model_fields(found.old),
        "new": _model_fields(found.new),
        "embedding": dataclasses.asdict(found.embedding),
        "heads": heads,
        "not_compared": dict(found.not_compared),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def as_html(found: Comparison, texts: int = 0) -> str:
    """Renders a comparison as HTML, with up to ``texts`` changed texts of each head; texts are escaped."""
    return _template().render(
        found=found,
        models=[("old", found.old, _model(found.old)), ("new", found.new, _model(found.new))],
        embedding=f"{_SPACES[found.embedding.space]}; {_embedding(found.embedding)}.",
        heads=[
            {"head": one, "row": _head_row(one), "cells": _cells(one), "texts": list(_texts(found, one, texts))}
            for one in found.heads
        ],
    )


@functools.cache
def _template() -> jinja2.Template:
    # The style is that of training's report.
    packages = ("polyhead_export.compare", "polyhead_training.reporting")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html.jinja")


def _model(side: Answers) -> str:
    fields = _model_fields(side)
    return (
        f"{fields['model']} {side.variant}, {fields['cpu_ms_per_text']:.1f} ms of CPU per text, "
        f"{fields['tokens_per_text']:.1f} tokens per text, {side.truncated:,} texts truncated"
    )


def _model_fields(side: Answers) -> dict[str, Any]:
    count = len(side.tokens)
    return {
        "model": side.bundle.model_id,
        "variant": side.variant,
        "cpu_ms_per_text": 1000 * side.cpu_seconds / count,
        "tokens_per_text": float(side.tokens.mean()),
        "truncated": side.truncated,
    }


def _embedding(found: EmbeddingAgreement) -> str:
    parts = []
    if found.cosine:
        mean, low, least = found.cosine
        parts.append(f"cosine {mean:.4f} on average, {low:.4f} at the 5th percentile, {least:.4f} at least")
    if found.recognized is not None and found.space != "same":
        parts.append(f"{_percent(found.recognized)} of the texts are nearest to themselves")
    parts.append(f"{_percent(found.common_neighbours)} of the {found.neighbours} nearest texts in common")
    return "; ".join(parts)


def _head_row(found: HeadAgreement) -> list[str]:
    changed, accuracy = found.changed, found.accuracy
    measured = [] if accuracy is None else [f"{accuracy.old:.4f}", f"{accuracy.new:.4f}", f"{accuracy.p_value:.2g}"]
    return [
        found.name,
        "" if changed is None else f"{changed.texts:,} ({_percent(changed.value)})",
        "" if changed is None else _interval(changed),
        "" if found.weighted is None else _percent(found.weighted),
        "" if found.difference is None else f"{found.difference:.4f}",
        *(measured or [""] * 3),
    ]


def _changes(found: HeadAgreement) -> Iterator[str]:
    """Yields labels that one model alone has, and the most frequent changes."""
    for labels, side in ((found.only_old, "old"), (found.only_new, "new")):
        if labels:
            yield f"labels of the {side} model alone: {', '.join(labels)}"
    multilabel = found.kind == "multilabel"
    counts = [
        (int(found.matrix[row, column]), old, new)
        for row, old in enumerate(found.rows)
        for column, new in enumerate(found.columns)
        if found.matrix[row, column] and column != (0 if multilabel else row)
    ]
    counts.sort(key=lambda one: -one[0])
    for count, old, new in counts[:_SHOWN_CHANGES]:
        yield f"{old}, {new}: {count:,}" if multilabel else f"{old} becomes {new}: {count:,}"
    if len(counts) > _SHOWN_CHANGES:
        yield f"{len(counts) - _SHOWN_CHANGES} other changes, {sum(one[0] for one in counts[_SHOWN_CHANGES:]):,} texts"


def _cells(found: HeadAgreement) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns each row of the matrix: its label, and the cells with their share of the row."""
    rows = []
    for place, label in enumerate(found.rows):
        total = max(1, int(found.matrix[place].sum()))
        kept = 0 if found.kind == "multilabel" else place
        cells = [
            {"count": int(count), "share": float(count / total), "equal": column == kept}
            for column, count in enumerate(found.matrix[place])
        ]
        rows.append((label, cells))
    return rows


def _texts(found: Comparison, head: HeadAgreement, count: int) -> Iterator[dict[str, Any]]:
    for row in found.changed_rows(head, count):
        one = found.rows[row]
        short = one.text[:_MAX_SHOWN_CHARACTERS]
        yield {
            "file": str(one.path),
            "line": one.line,
            "text": short if short == one.text else f"{short} ...",
            "old": head.answer(0, row),
            "new": head.answer(1, row),
        }


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _interval(found: Share) -> str:
    return f"{100 * found.low:.2f} to {100 * found.high:.2f}"

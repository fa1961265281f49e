"""The bundle's README.md: what the model answers, how well, and how to serve it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from polyhead_training.checkpoint import EVALUATION_NAME, Run
from polyhead_training.errors import RunError

from .bundle import Head, Manifest
from .layout import CARD, CONFIG, GRAPH, TOKENIZER, WEIGHTS

_FILES = {
    "bundle.json": "the manifest: hashes, inputs and outputs, heads, gate, golden texts with their right answers",
    GRAPH: "the model, backbone and all heads in one ONNX graph, fp32",
    TOKENIZER: "the tokenizer, with padding and truncation off",
    f"{CONFIG}`, `{WEIGHTS}": "the same model for PyTorch",
    CARD: "this page",
}


def render_card(run: Run, manifest: Manifest) -> str:
    """The card as Markdown.

    Args:
        run: The run that the bundle comes from; its ``evaluation.json`` may be missing.
        manifest: What the bundle will say; its ``files`` are not looked at.

    Raises:
        RunError: ``evaluation.json`` is not what ``polyhead-train`` writes.
    """
    sections = [_introduction(manifest), _heads(manifest.heads), _evaluation(run), _gate(manifest), _usage()]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _introduction(manifest: Manifest) -> list[str]:
    embedding = manifest.embedding
    length = "scaled to length 1" if embedding.normalized else "not scaled"
    return [
        f"# {manifest.name}",
        "",
        "One pass of one backbone answers a text with a sentence embedding and with every head below.",
        "",
        f"- Embedding: {embedding.dimensions} numbers, pooling `{embedding.pooling}`, {length}.",
        f"- Reads the first {manifest.max_tokens} tokens of a text, special tokens included.",
    ]


def _heads(heads: Sequence[Head]) -> list[str]:
    rows = [
        [
            f"`{head.name}`",
            head.kind,
            ", ".join(f"`{label}`" for label in head.labels),
            f"{head.temperature:g}",
            "" if head.threshold is None else f"{head.threshold:g}",
        ]
        for head in heads
    ]
    return ["## Heads", "", *_table(["head", "kind", "labels", "temperature", "threshold"], rows)]


def _evaluation(run: Run) -> list[str]:
    path = run.path / EVALUATION_NAME
    if not path.is_file():
        return []
    try:
        rows = list(_scores(json.loads(path.read_bytes())))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(path, f"is not what polyhead-train writes ({error!r}); train again") from None
    header = ["split", "head", "rows", "accuracy", "commonest label alone"]
    return ["## Evaluation", "", *_table(header, rows)]


def _scores(evaluation: dict[str, Any]) -> Iterator[list[str]]:
    for split, heads in evaluation.items():
        for head, score in heads.items():
            # A split without labels for a head has no accuracy.
            if score["rows"]:
                figures = [f"{score[key]:.4f}" for key in ("accuracy", "majority_baseline")]
                yield [split, f"`{head}`", f"{score['rows']:,}", *figures]


def _gate(manifest: Manifest) -> list[str]:
    lines = [
        "## Gate",
        "",
        "The graph against the trained model, on golden texts and on ragged random batches. A value above its limit",
        "would have stopped the export.",
    ]
    for name, variant in manifest.variants.items():
        rows = [[f"`{check.name}`", f"{check.value:.2g}", f"{check.limit:.2g}"] for check in variant.gate]
        lines += ["", f"Variant `{name}` (`{variant.file}`):", "", *_table(["check", "value", "limit"], rows)]
    return lines


def _usage() -> list[str]:
    return [
        "## Files",
        "",
        *(f"- `{name}`: {content}" for name, content in _FILES.items()),
        "",
        "A bundle is closed: a changed, missing or added file is refused. Copy the directory as a whole.",
        "",
        "## Serve",
        "",
        "```",
        "polyhead-export verify .",
        "polyhead-serve .",
        'polyhead analyze "The parcel came two days early."',
        "```",
    ]


def _table(header: list[str], rows: Sequence[list[str]]) -> list[str]:
    # A bar inside a label would end its cell.
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]

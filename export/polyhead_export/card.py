"""The bundle's README.md: what the model answers, how well, and how to serve it."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead_bundle import Head, Manifest
from polyhead_training.reporting.model_card import code, figures, table
from polyhead_training.reporting.results import read_evaluation
from polyhead_training.runs.run_directory import EVALUATION_NAME, Run

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
    sections = [_introduction(manifest), _heads(manifest.heads), _evaluation(run), _gate(manifest), _usage(manifest)]
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
            code(head.name),
            head.kind,
            ", ".join(map(code, head.labels)),
            f"{head.temperature:.4g}",
            "" if head.threshold is None else f"{head.threshold:g}",
        ]
        for head in heads
    ]
    return ["## Heads", "", *table(["head", "kind", "labels", "temperature", "threshold"], rows)]


def _evaluation(run: Run) -> list[str]:
    path = run.path / EVALUATION_NAME
    if not path.is_file():
        return []
    splits = read_evaluation(path)
    return figures(splits, splits.pop("similarity", None))


def _gate(manifest: Manifest) -> list[str]:
    lines = [
        "## Gate",
        "",
        "Each graph against the trained model, on golden texts, ragged random batches and held-out labelled rows where",
        "they were given. A variant with a value above its limit would not be here.",
    ]
    for name, variant in manifest.variants.items():
        rows = [[f"`{check.name}`", f"{check.value:.2g}", f"{check.limit:.2g}"] for check in variant.gate]
        company = "" if variant.batch_invariant else "; an answer depends on the other texts of its batch"
        lines += ["", f"Variant `{name}` (`{variant.file}`{company}):", ""]
        lines += table(["check", "value", "limit"], rows)
    return lines


def _usage(manifest: Manifest) -> list[str]:
    return [
        "## Files",
        "",
        *(f"- `{name}`: {content}" for name, content in _FILES.items()),
        *(f"- `{variant.file}`: the same, {name}" for name, variant in manifest.variants.items() if name != "fp32"),
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

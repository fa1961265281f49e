"""The model card of a bundle, ``README.md``: outputs of the model, evaluation, gate results, and how to serve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from polyhead_bundle import NOVELTY, Head, Manifest
from polyhead_training.reporting.model_card import (
    abstentions,
    code,
    figures,
    prediction_sets,
    prompts,
    table,
    thresholds,
)
from polyhead_training.reporting.results import read_evaluation
from polyhead_training.runs.run_directory import EVALUATION_NAME, Run

from . import plausibility
from .layout import CARD, CONFIG, GRAPH, TOKENIZER, WEIGHTS

_FILES = {
    "bundle.json": "manifest: hashes, inputs and outputs, heads, gate results, golden texts and their expected outputs",
    GRAPH: "the model, backbone and all heads in one ONNX graph, fp32",
    TOKENIZER: "the tokenizer, with padding and truncation off",
    f"{CONFIG}`, `{WEIGHTS}": "the same model for PyTorch",
    CARD: "this model card",
    NOVELTY: "centroids and directions of the training texts' embeddings, in float16",
}


def render_card(run: Run, manifest: Manifest) -> str:
    """Renders the card as Markdown.

    Args:
        run: The run that the bundle comes from; its ``evaluation.json`` may be missing.
        manifest: The bundle's manifest; its ``files`` may be empty.

    Raises:
        RunError: ``evaluation.json`` is not a file that ``polyhead-train`` writes.
    """
    sections = [
        _introduction(manifest),
        _heads(manifest.heads),
        prompts(manifest.prompts, run.content["config"].get("data", {}).get("prompt")),
        _evaluation(run),
        abstentions({head.name: asdict(head.abstention) for head in manifest.heads if head.abstention}),
        prediction_sets({head.name: asdict(head.prediction_sets) for head in manifest.heads if head.prediction_sets}),
        _gate(manifest),
        _usage(manifest),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _introduction(manifest: Manifest) -> list[str]:
    embedding = manifest.embedding
    scaling = "scaled to unit length" if embedding.normalized else "not scaled"
    return [
        f"# {manifest.name}",
        "",
        "One forward pass returns a sentence embedding and a prediction of each head below.",
        "",
        f"- Embedding: {embedding.dimensions} numbers, pooling `{embedding.pooling}`, {scaling}.",
        f"- Token limit: {manifest.max_tokens}, special tokens included; longer texts are truncated.",
    ]


def _heads(heads: Sequence[Head]) -> list[str]:
    rows = [
        [
            code(head.name),
            head.kind,
            ", ".join(map(code, head.labels)),
            f"{head.temperature:.4g}",
            thresholds(head.threshold, head.thresholds),
        ]
        for head in heads
    ]
    return ["## Heads", "", *table(["head", "kind", "labels", "temperature", "threshold"], rows)]


def _evaluation(run: Run) -> list[str]:
    path = run.path / EVALUATION_NAME
    if not path.is_file():
        return []
    splits = read_evaluation(path)
    similarity, retrieval = (splits.pop(part, None) for part in ("similarity", "retrieval"))
    return figures(splits, similarity, retrieval)


def _gate(manifest: Manifest) -> list[str]:
    lines = [
        "## Gate",
        "",
        "The gate compares each graph with the trained model on golden texts, on ragged random batches and, if given,",
        "on evaluation data. The bundle holds only variants whose every value is within its limit.",
    ]
    if warnings := plausibility.warnings(manifest.variants["fp32"].gate):
        lines += ["", *(f"- **Warning**: {warning}." for warning in warnings)]
    for name, variant in manifest.variants.items():
        rows = [[f"`{check.name}`", f"{check.value:.2g}", f"{check.limit:.2g}"] for check in variant.gate]
        note = "" if variant.batch_invariant else "; results depend on the other texts in the batch"
        lines += ["", f"Variant `{name}` (`{variant.file}`{note}):", ""]
        lines += table(["check", "value", "limit"], rows)
    return lines


def _usage(manifest: Manifest) -> list[str]:
    return [
        "## Files",
        "",
        *(f"- `{name}`: {content}" for name, content in _FILES.items() if name != NOVELTY or manifest.novelty),
        *(f"- `{variant.file}`: the model, {name}" for name, variant in manifest.variants.items() if name != "fp32"),
        "",
        "Copy the directory as a whole: a bundle with a changed, missing or additional file is rejected.",
        "",
        "## Serve",
        "",
        "```",
        "polyhead-export verify .",
        "polyhead-serve .",
        'polyhead analyze "The parcel came two days early."',
        "```",
    ]

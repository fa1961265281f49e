"""From a run directory to a verified bundle.

::

    RUN_DIR --load_run--> model --export_graph--> model.onnx --gate--> checks --+
                          model --golden texts--> answers ---------------------+--> Manifest --write--> OUTPUT_DIR
                          weights, tokenizer, heads --> fingerprints ----------+
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from polyhead_training.errors import RunError
from polyhead_training.model import PolyheadModel
from polyhead_training.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad

from . import bundle, gate
from .bundle import Bundle, Check, Golden, Head, Manifest, Variant
from .card import render_card
from .fingerprints import take_fingerprints
from .golden import golden_texts
from .graph import EMBEDDING_OUTPUT, describe_embedding, describe_graph, export_graph
from .layout import CARD, CONFIG, GRAPH, TOKENIZER, WEIGHTS
from .passes import torch_pass

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "polyhead", "tokenizers", "torch", "transformers")
_PRECISION = "fp32"


def export(run_dir: Path, output_dir: Path, say: Callable[[str], None]) -> Bundle:
    """Exports a trained model, holds the graph against it, and writes the bundle when every check passed.

    Args:
        run_dir: What ``polyhead-train`` wrote.
        output_dir: The bundle's directory; a bundle that stands there is replaced, anything else is not.
        say: Takes each line of progress.

    Returns:
        The bundle.

    Raises:
        RunError: ``run_dir`` is not a run, or its parts contradict each other.
        GraphError: The model does not become a graph.
        GateError: The graph does not answer as the model does; nothing was written.
        BundleError: ``output_dir`` holds something that is not a bundle.
    """
    # Before the minutes of work, not after them.
    bundle.require_replaceable(output_dir)
    run = load_run(run_dir)
    heads = read_heads(run)
    ids = _encode_golden(run)
    with tempfile.TemporaryDirectory(prefix="polyhead-export-") as folder:
        say(f"{run.name}: exporting the graph")
        graph = Path(folder) / GRAPH
        export_graph(run.model, graph)
        say("gate: the graph against the trained model")
        checks = gate.measure(graph, run.model, ids, heads)
        say(gate.table(checks))
        gate.require_passed(_PRECISION, checks)
        manifest = _describe(run, heads, graph, ids, checks)
        say(f"writing {output_dir}")
        return bundle.write(output_dir, manifest, _collect(run, Path(folder), manifest))


def read_heads(run: Run) -> tuple[Head, ...]:
    """The run's heads with their calibration, in the model's order.

    Raises:
        RunError: ``run.json`` lacks a field of one, or speaks of other heads than the model has.
    """
    outputs = run.model.config.output_names()
    shape = ("name", "kind", "labels")
    try:
        described = [[head[key] for key in shape] for head in run.heads]
        built = [[head[key] for key in shape] for head in run.model.config.heads]
        if described != built:
            raise RunError(run.path, "run.json and model/config.json describe different heads; train again")
        return tuple(
            Head(
                name=head["name"],
                kind=head["kind"],
                output=outputs[head["name"]],
                labels=tuple(head["labels"]),
                temperature=float(head["temperature"]),
                threshold=head["threshold"],
            )
            for head in run.heads
        )
    except KeyError as error:
        raise RunError(run.path / "run.json", f"heads: one has no field {error}; train again") from None


def _encode_golden(run: Run) -> list[list[int]]:
    try:
        tokenizer = load_tokenizer(run.tokenizer_path)
    except Exception as error:  # tokenizers has no class of its own
        raise RunError(run.tokenizer_path, f"is no tokenizer: {error}; train again") from error
    return list(encode(tokenizer, golden_texts(run.model.config.max_tokens), run.model.config.max_tokens))


def _describe(
    run: Run, heads: tuple[Head, ...], graph: Path, ids: Sequence[Sequence[int]], checks: tuple[Check, ...]
) -> Manifest:
    config = run.model.config
    inputs, outputs = describe_graph(onnx.load(str(graph)))
    fingerprints = take_fingerprints(run.model, heads, run.tokenizer_path.read_bytes(), _PRECISION)
    return Manifest(
        name=run.name,
        files={},
        inputs=inputs,
        outputs=outputs,
        embedding=describe_embedding(config),
        heads=heads,
        max_tokens=config.max_tokens,
        pad_token_id=config.pad_token_id,
        variants={
            _PRECISION: Variant(
                file=GRAPH,
                batch_invariant=True,
                golden_tolerance=gate.GOLDEN_TOLERANCE,
                fingerprints=fingerprints,
                gate=checks,
            )
        },
        golden=_answer_golden(run.model, heads, ids),
        built_with=_versions(),
    )


def _answer_golden(model: PolyheadModel, heads: Sequence[Head], ids: Sequence[Sequence[int]]) -> tuple[Golden, ...]:
    """The trained model's own answers, each text alone."""
    run = torch_pass(model)
    answers = [run(*pad([one], model.config.pad_token_id)) for one in ids]
    return tuple(
        Golden(
            text=text,
            embedding=tuple(answer[EMBEDDING_OUTPUT][0].tolist()),
            logits={head.name: tuple(answer[head.output][0].tolist()) for head in heads},
        )
        for text, answer in zip(golden_texts(model.config.max_tokens), answers, strict=True)
    )


def _collect(run: Run, folder: Path, manifest: Manifest) -> dict[str, Path]:
    """The bundle's files: those of the run, and those made in ``folder``."""
    source = run.path / "model"
    config = json.loads((source / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(_without_paths(config), indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / CARD).write_text(render_card(run, manifest), "utf-8")
    return {
        GRAPH: folder / GRAPH,
        TOKENIZER: run.tokenizer_path,
        CONFIG: folder / "config.json",
        WEIGHTS: source / "model.safetensors",
        CARD: folder / CARD,
    }


def _without_paths(config: Any) -> Any:
    """A configuration without the folder that transformers loaded it from."""
    if isinstance(config, Mapping):
        return {key: _without_paths(value) for key, value in config.items() if key != "_name_or_path"}
    return config


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # polyhead itself, run from its source
            continue
    return installed

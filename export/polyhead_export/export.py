"""From a run directory to a verified bundle.

::

    RUN_DIR --load_run--> model --export_graph--> model.onnx --make_variant--> a graph a variant --gate--> checks --+
                          each variant's graph --golden texts--> answers ------------------------------------------+
                          weights, tokenizer, heads --> fingerprints ----------------------------------------------+
    all of it --> Manifest --write--> OUTPUT_DIR
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import polyhead_bundle as bundle
from polyhead_bundle import Bundle, Golden, Head, Manifest, Variant, weights_name
from polyhead_training.errors import RunError
from polyhead_training.model import PolyheadConfig
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad

from polyhead_export.quantization.fusion import operators, summary
from polyhead_export.quantization.variants import make_variant

from . import gate
from .card import render_card
from .errors import GateError, GraphError
from .eval_data import Labelled, read_rows
from .fingerprints import take_fingerprints
from .golden import golden_texts
from .layout import CARD, CONFIG, GRAPH, TOKENIZER, WEIGHTS
from .onnx_export import EMBEDDING_OUTPUT, describe_embedding, describe_graph, export_graph
from .runners import Runner, onnx_pass, torch_pass
from .settings import BATCH_INVARIANT, Limits, Settings, VariantName

DEFAULT_SETTINGS = Settings()
# Labelled rows that the choices of int8 are judged on, each of them: a minute or so for them all.
_JUDGING_ROWS = 2000
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "polyhead", "tokenizers", "torch", "transformers")


def export(
    run_dir: Path, output_dir: Path, say: Callable[[str], None], settings: Settings = DEFAULT_SETTINGS
) -> Bundle:
    """Exports a trained model, holds each variant's graph against it, and writes the bundle with those that passed.

    Args:
        run_dir: What ``polyhead-train`` wrote.
        output_dir: The bundle's directory; a bundle that stands there is replaced, anything else is not.
        say: Takes each line of progress.
        settings: Which variants to make, and what each may be off by.

    Returns:
        The bundle; a variant other than fp32 that did not pass is not in it.

    Raises:
        RunError: ``run_dir`` is not a run, or its parts contradict each other.
        GraphError: The model does not become a graph.
        DataError: A labelled file has rows that cannot be read.
        SettingsError: A labelled file is missing, or has no labels.
        GateError: The fp32 graph does not answer as the model does; nothing was written.
        BundleError: ``output_dir`` holds something that is not a bundle.
    """
    # Before the minutes of work, not after them.
    bundle.recover(output_dir.resolve())
    bundle.require_replaceable(output_dir)
    run = load_run(run_dir)
    heads = read_heads(run)
    ids = _encode_golden(run)
    with tempfile.TemporaryDirectory(prefix="polyhead-export-") as folder, bundle.named_failures(Path(folder)):
        say(f"{run.name}: exporting the graph")
        labelled = read_rows(run, heads, settings.labelled_files) if settings.labelled else None
        if labelled is None:
            say("gate: no labelled file, so nothing is said about accuracy and calibration; give one with --eval-data")
        graph = Path(folder) / GRAPH
        export_graph(run.model, graph)
        variants: dict[str, Variant] = {}
        for name in settings.wanted:
            try:
                variants[name] = _make(name, run, graph, heads, ids, labelled, settings.limits_of(name), say)
            except (GateError, GraphError) as error:
                if name == "fp32":
                    raise
                say(f"variant {name} is left out: {error}")
        manifest = _describe(run, heads, graph, variants)
        say(f"writing {output_dir}")
        return bundle.write(output_dir, manifest, _collect(run, Path(folder), manifest))


def _make(  # noqa: PLR0917
    name: VariantName,
    run: Run,
    plain: Path,
    heads: tuple[Head, ...],
    ids: Sequence[Sequence[int]],
    labelled: Labelled | None,
    limits: Limits,
    say: Callable[[str], None],
) -> Variant:
    """One variant, written beside the plain graph and passed through the gate."""
    if labelled:
        some = labelled.part(_JUDGING_ROWS)
        loss = partial(_worst_drop, some, heads)
        path = make_variant(name, plain, run.model.config, ids, say, labelled.ids, loss)
    else:
        path = make_variant(name, plain, run.model.config, ids, say)
    counted = operators(onnx.load(str(path), load_external_data=False))
    say(f"variant {name}: {summary(counted)}")
    checks = gate.measure(path, run.model, ids, heads, limits, labelled)
    say(gate.table(checks))
    gate.require_passed(name, checks)
    # fp32 is held to the trained model's own answers wherever it runs, the others to those that passed here.
    answer = torch_pass(run.model) if name == "fp32" else onnx_pass(path)
    return Variant(
        file=path.name,
        batch_invariant=name in BATCH_INVARIANT,
        golden_tolerance=limits.golden,
        fingerprints=take_fingerprints(run.model, heads, run.tokenizer_path.read_bytes(), name),
        gate=checks,
        golden=_answer_golden(answer, run.model.config, heads, ids),
        operators=counted,
    )


def _worst_drop(rows: Labelled, heads: Sequence[Head], graph: Path) -> float:
    """By how much the worst head of a graph is right less often than the trained model, 0 where none is."""
    answers = rows.answer(onnx_pass(graph))
    drops = [
        (rows.score(rows.reference, head, column).accuracy or 0.0) - (rows.score(answers, head, column).accuracy or 0.0)
        for column, head in enumerate(heads)
        if rows.known(column)
    ]
    # Of many rows without labels, the ones that were picked may have none.
    return max([0.0, *drops])


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


def _describe(run: Run, heads: tuple[Head, ...], graph: Path, variants: dict[str, Variant]) -> Manifest:
    config = run.model.config
    inputs, outputs = describe_graph(onnx.load(str(graph), load_external_data=False))
    return Manifest(
        name=run.name,
        files={},
        inputs=inputs,
        outputs=outputs,
        embedding=describe_embedding(config),
        heads=heads,
        max_tokens=config.max_tokens,
        pad_token_id=config.pad_token_id,
        variants=variants,
        built_with=_versions(),
    )


def _answer_golden(
    run: Runner, config: PolyheadConfig, heads: Sequence[Head], ids: Sequence[Sequence[int]]
) -> tuple[Golden, ...]:
    """The answers to the golden texts, each text alone."""
    answers = [run(*pad([one], config.pad_token_id)) for one in ids]
    return tuple(
        Golden(
            text=text,
            embedding=tuple(answer[EMBEDDING_OUTPUT][0].tolist()),
            logits={head.name: tuple(answer[head.output][0].tolist()) for head in heads},
        )
        for text, answer in zip(golden_texts(config.max_tokens), answers, strict=True)
    )


def _collect(run: Run, folder: Path, manifest: Manifest) -> dict[str, Path]:
    """The bundle's files: those of the run, and those made in ``folder``."""
    source = run.path / "model"
    config = json.loads((source / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(_without_paths(config), indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / CARD).write_text(render_card(run, manifest), "utf-8")
    graphs = [variant.file for variant in manifest.variants.values()]
    # A graph that is too large for one file has its weights beside it.
    weights = [weights_name(name) for name in graphs if (folder / weights_name(name)).exists()]
    return {
        **{name: folder / name for name in (*graphs, *weights)},
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

"""Exports a run directory to a verified bundle.

::

    RUN_DIR --load_run--> model --export_graph--> model.onnx --make_variant--> one graph per variant --gate--> checks -+
                          each variant's graph --golden texts--> expected outputs -------------------------------------+
                          weights, tokenizer, heads --> fingerprints --------------------------------------------------+
    Manifest <---------------------------------------------------------------------------------------------------------+
             --write--> OUTPUT_DIR
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import polyhead_bundle as bundle
from polyhead_bundle import (
    NOVELTY,
    Abstention,
    Bundle,
    CoveragePoint,
    Golden,
    Head,
    Manifest,
    Novelty,
    PredictionSets,
    Variant,
    external_data_name,
)
from polyhead_training.errors import RunError
from polyhead_training.evaluation.novelty import NoveltyModel
from polyhead_training.model import PolyheadConfig
from polyhead_training.runs.run_directory import Run, installed_versions, load_run
from polyhead_training.tokenization import encode, load_tokenizer, overlong_prompts, pad
from polyhead_training.units import format_duration

from polyhead_export.quantization.fusion import count_operators, summary
from polyhead_export.quantization.variants import make_variant

from . import gate, plausibility
from .card import render_card
from .errors import GateError, GraphError
from .eval_data import EvalData, read_eval_data
from .fingerprints import compute_fingerprints
from .golden import golden_texts
from .layout import CARD, CONFIG, EMBEDDING_OUTPUT, GRAPH, TOKENIZER, WEIGHTS
from .novelty import novelty_model, read_novelty, read_reference
from .onnx_export import describe_embedding, describe_graph, export_graph
from .runners import Runner, SharedRunners, run_all, worker_threads
from .settings import BATCH_INVARIANT, Limits, Settings, VariantName

DEFAULT_SETTINGS = Settings()
# Evaluation rows that each candidate for int8 is scored on; all candidates together take about a minute.
_MAX_SELECTION_ROWS = 2000
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "polyhead", "tokenizers", "torch", "transformers")


def export(
    run_dir: Path, output_dir: Path, report: Callable[[str], None], settings: Settings = DEFAULT_SETTINGS
) -> Bundle:
    """Exports a trained model, compares each variant with it, and writes a bundle with the variants that passed.

    Args:
        run_dir: A run directory written by ``polyhead-train``.
        output_dir: The bundle's directory; an existing bundle is replaced, any other directory is an error.
        report: Called with each line of progress.
        settings: The variants to make, and the limits of each.

    Returns:
        The bundle, without variants other than fp32 that failed their gate.

    Raises:
        RunError: ``run_dir`` is not a run directory, or is inconsistent.
        GraphError: The model cannot be exported to a graph.
        DataError: The evaluation data has rows that cannot be read.
        SettingsError: An evaluation file is missing, or has no labels.
        GateError: The fp32 graph does not match the trained model; nothing was written.
        BundleError: ``output_dir`` exists and is not a bundle.
    """
    # Checked first, so that a bad destination fails at once and not after minutes of work.
    bundle.recover(output_dir.resolve())
    bundle.require_replaceable(output_dir)
    run = load_run(run_dir)
    heads = read_heads(run)
    novelty = read_novelty(run)
    ids = _encode_golden(run)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="polyhead-export-"))
        stack.enter_context(bundle.add_path_to_os_errors(Path(folder)))
        runners = SharedRunners(stack.enter_context(worker_threads()))
        reference = runners.model(run.model)
        if settings.eval_data:
            report(f"{run.name}: running the trained model on the evaluation data")
            with _timed("evaluation data read and run", report):
                eval_data = read_eval_data(run, heads, settings.eval_data_files, reference)
        else:
            eval_data = None
            report("gate: no evaluation data; accuracy and calibration are not checked (use --eval-data)")
        graph = Path(folder) / GRAPH
        report(f"{run.name}: exporting the graph")
        with _timed("graph exported", report):
            export_graph(run.model, graph)
        work = _Work(
            run,
            heads,
            ids,
            eval_data,
            runners,
            reference,
            novelty_model(run_dir, novelty, run.model.config.embedding_size()),
            report,
        )
        variants: dict[str, Variant] = {}
        for name in settings.selected:
            try:
                variants[name] = _make(name, graph, settings.limits_of(name), work)
            except (GateError, GraphError) as error:
                if name == "fp32":
                    raise
                report(f"variant {name} is left out: {error}")
        manifest = _describe(run, heads, graph, variants, novelty)
        report(f"writing {output_dir}")
        return bundle.write(output_dir, manifest, _collect(run, Path(folder), manifest))


class _Work(NamedTuple):
    """What the variants of one export share: inputs, and runners that compute each batch once.

    Attributes:
        run: The run.
        heads: Its heads.
        ids: Token ids of the golden texts.
        eval_data: Labelled rows, if there are any.
        runners: Runners of the graphs.
        reference: Runner of the trained model.
        novelty: Computes the novelty of embeddings, if the run has it.
        report: Called with each line of progress.
    """

    run: Run
    heads: tuple[Head, ...]
    ids: Sequence[Sequence[int]]
    eval_data: EvalData | None
    runners: SharedRunners
    reference: Runner
    novelty: NoveltyModel | None
    report: Callable[[str], None]


def _make(name: VariantName, plain: Path, limits: Limits, work: _Work) -> Variant:
    """Writes one variant beside the plain graph and runs the gate on it."""
    config, heads, report = work.run.model.config, work.heads, work.report
    texts = work.eval_data.ids if work.eval_data else ()
    sample = work.eval_data.sample(_MAX_SELECTION_ROWS) if work.eval_data else None

    def accuracy_drop(candidate: Path) -> float:
        if sample is None:
            return 0.0
        return sample.worst_accuracy_drop(work.runners.graph(candidate), heads, f"{name}: evaluation data")

    with _timed(f"variant {name} made", report) if name != "fp32" else nullcontext():
        path = make_variant(name, plain, work.run.model, work.ids, report, texts, accuracy_drop, work.runners.graph)
    counts = count_operators(onnx.load(str(path), load_external_data=False))
    report(f"variant {name}: {summary(counts)}")
    graph = work.runners.graph(path)
    with _timed(f"variant {name} checked", report):
        checks = gate.measure(
            path,
            work.run.model,
            work.ids,
            heads,
            limits,
            work.eval_data,
            graph=graph,
            reference=work.reference,
            novelty=work.novelty,
        )
    report(gate.format_table(checks))
    gate.require_passed(name, checks)
    if name == "fp32":
        for warning in plausibility.warnings(checks):
            report(f"warning: {warning}")
    # Wherever they run, fp32 must match the trained model, and other variants their own outputs of this export.
    runner = work.reference if name == "fp32" else graph
    return Variant(
        file=path.name,
        batch_invariant=name in BATCH_INVARIANT,
        golden_tolerance=limits.golden,
        fingerprints=compute_fingerprints(work.run.model, heads, work.run.tokenizer_path.read_bytes(), name),
        gate=checks,
        golden=_run_golden(runner, config, heads, work.ids),
        operators=counts,
    )


@contextmanager
def _timed(step: str, report: Callable[[str], None]) -> Iterator[None]:
    """Reports how long a step took, if it succeeded."""
    started = time.monotonic()
    yield
    report(f"{step} in {format_duration(time.monotonic() - started)}")


def read_heads(run: Run) -> tuple[Head, ...]:
    """Reads the run's heads with their calibration, in the model's order.

    Raises:
        RunError: ``run.json`` lacks a field of a head, or describes other heads than the model has.
    """
    outputs = run.model.config.output_names()
    identity = ("name", "kind", "labels")
    try:
        described = [[head[key] for key in identity] for head in run.heads]
        built = [[head[key] for key in identity] for head in run.model.config.heads]
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
                thresholds=None if head.get("thresholds") is None else tuple(head["thresholds"]),
                spread=float(model_head.get("spread", 1.0)),
                abstention=_abstention(head.get("abstention")),
                prediction_sets=_prediction_sets(head.get("prediction_sets")),
            )
            for head, model_head in zip(run.heads, run.model.config.heads, strict=True)
        )
    except KeyError as error:
        raise RunError(run.path / "run.json", f"heads: a head has no field {error}; train again") from None
    except TypeError as error:
        reason = f"heads: abstention or prediction_sets are damaged ({error}); train again"
        raise RunError(run.path / "run.json", reason) from None


def _abstention(found: Mapping[str, Any] | None) -> Abstention | None:
    if found is None:
        return None
    return Abstention(**{**found, "curve": tuple(CoveragePoint(**point) for point in found["curve"])})


def _prediction_sets(found: Mapping[str, Any] | None) -> PredictionSets | None:
    return None if found is None or found["threshold"] is None else PredictionSets(**found)


def _encode_golden(run: Run) -> list[list[int]]:
    try:
        tokenizer = load_tokenizer(run.tokenizer_path)
    except Exception as error:  # tokenizers raises plain Exception
        raise RunError(run.tokenizer_path, f"is not a valid tokenizer: {error}; train again") from error
    limit, prompts = run.model.config.max_tokens, run.model.config.prompts
    for name, tokens in overlong_prompts(tokenizer, prompts, limit).items():
        reason = f"prompts.{name}: has {tokens} tokens, and max_tokens is {limit}, which leaves none for a text"
        raise RunError(run.path, f"{reason}; train again with a shorter one")
    return list(encode(tokenizer, golden_texts(limit, prompts), limit))


def _describe(
    run: Run, heads: tuple[Head, ...], graph: Path, variants: dict[str, Variant], novelty: Novelty | None
) -> Manifest:
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
        built_with=installed_versions(_PACKAGES),
        prompts=dict(config.prompts),
        novelty=novelty,
        reference=read_reference(run),
    )


def _run_golden(
    runner: Runner, config: PolyheadConfig, heads: Sequence[Head], ids: Sequence[Sequence[int]]
) -> tuple[Golden, ...]:
    """Runs the golden texts, each in a batch of its own."""
    outputs = run_all(runner, [pad([text_ids], config.pad_token_id) for text_ids in ids], len(ids))
    return tuple(
        Golden(
            text=text,
            embedding=tuple(expected[EMBEDDING_OUTPUT][0].tolist()),
            logits={head.name: tuple(expected[head.output][0].tolist()) for head in heads},
        )
        for text, expected in zip(golden_texts(config.max_tokens, config.prompts), outputs, strict=True)
    )


def _collect(run: Run, folder: Path, manifest: Manifest) -> dict[str, Path]:
    """Returns the source of each file of the bundle: the run directory, or ``folder`` for generated files."""
    source = run.path / "model"
    config = json.loads((source / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(_without_paths(config), indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / CARD).write_text(render_card(run, manifest), "utf-8")
    graphs = [variant.file for variant in manifest.variants.values()]
    # A graph that is too large for a single file has its weights in another file beside it.
    weights = [external_data_name(name) for name in graphs if (folder / external_data_name(name)).exists()]
    return {
        **{name: folder / name for name in (*graphs, *weights)},
        TOKENIZER: run.tokenizer_path,
        CONFIG: folder / "config.json",
        WEIGHTS: source / "model.safetensors",
        CARD: folder / CARD,
        **({NOVELTY: run.path / NOVELTY} if manifest.novelty else {}),
    }


def _without_paths(config: Any) -> Any:
    """Removes the folder that transformers loaded a configuration from."""
    if isinstance(config, Mapping):
        return {key: _without_paths(value) for key, value in config.items() if key != "_name_or_path"}
    return config

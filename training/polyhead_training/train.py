"""A training run, from the configuration to the run directory.

::

    Config --prepare--> rows, backbone --> model --Loop--> trained model --evaluate--> Evaluation --> run directory
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from polyhead_bundle.atomic_directory import recover
from safetensors import SafetensorError
from safetensors.torch import load_file

from polyhead_training.data.dataset import Data, read_data
from polyhead_training.data.preparation import Prepared, prepare
from polyhead_training.evaluation.collected import collected_lines, score_collected
from polyhead_training.evaluation.evaluate import Evaluation, Split, evaluate_run, table
from polyhead_training.evaluation.novelty import NoveltyModel
from polyhead_training.evaluation.scoring import quick_score
from polyhead_training.loop.loop import SIMILARITY, Loop, Validation
from polyhead_training.loop.loss import standardizations
from polyhead_training.loop.stages import check_stages, trains_backbone, trains_embedding
from polyhead_training.loop.teacher import Teacher, open_teacher
from polyhead_training.reporting.embedding_table import embedding_table
from polyhead_training.reporting.model_card import write_card
from polyhead_training.reporting.report import write_report
from polyhead_training.reporting.results import implausible
from polyhead_training.runs.checkpoint import BEST_NAME
from polyhead_training.runs.in_progress import Identity, ResumePolicy, difference, in_progress_path, in_progress_run
from polyhead_training.runs.run_directory import (
    COLLECTED_NAME,
    DATA_NAME,
    EVALUATION_NAME,
    METRICS_NAME,
    TRACKERS_NAME,
    require_replaceable,
    staged_run,
    stored_identity,
    write_json,
    write_run,
)

from .backbone import Backbone
from .config import Config
from .embedding_quality import EmbeddingQuality, embedding_correlations, measure, retrieval, similarity
from .errors import BackboneError, StorageError
from .features import FeatureCache, SharedVectors
from .model import PolyheadModel
from .model_config import HeadConfig
from .novelty import fit_run_novelty, missing_lines, run_reference
from .predict import Matrix, predict
from .terminal import Report, discard
from .weights import WeightsError

# Other processes wait this long while the main process evaluates and writes alone.
_PROCESS_TIMEOUT = timedelta(hours=4)
_VALIDATION = "validation"


def train(
    config: Config,
    destination: Path,
    *,
    data: Data | None = None,
    out_of_fold: Split | None = None,
    shared: SharedVectors | None = None,
    describe: bool = True,
    max_steps: int | None = None,
    policy: ResumePolicy = "refuse",
    stop: Callable[[], bool] = lambda: False,
    report: Report = print,
) -> Evaluation | None:
    """Trains and evaluates a model and writes a run directory. Every process of a launcher must call it.

    Args:
        config: The configuration.
        destination: The run directory; an existing run there is replaced.
        data: The rows, if the caller has read them; None reads them.
        out_of_fold: Predictions of a cross-validation, evaluated in place of those for the validation rows.
        shared: Vectors of other runs with the same backbone, if none of them trains it.
        describe: Whether to report on the rows.
        max_steps: Steps after which training ends early; None for no limit.
        policy: Action for an existing run in progress.
        stop: Returns whether to stop; called once per step.
        report: Receives messages for the terminal.

    Returns:
        The content of ``evaluation.json``; None if the run to resume is already complete.

    Raises:
        TrainingError: The configuration, the data, the backbone or the destination cannot be used, or training failed
            or was stopped.
    """
    require_replaceable(destination.resolve())
    accelerator = _start(config, destination)
    if accelerator.is_main_process:
        recover(destination.resolve())
    accelerator.wait_for_everyone()
    report = report if accelerator.is_main_process else discard
    prepared = prepare(config, data or read_data(config))
    for line in prepared.report.lines() if describe else ():
        report(line)
    model = build_model(config, prepared.backbone, prepared.data.heads).to(accelerator.device)
    model.standardize(standardizations(prepared.data.heads, prepared.splits["train"].labels))
    check_stages(config, model)
    teacher = open_teacher(config, prepared.data.heads)
    # The heads' initial weights must be equal in every process; dropout must differ.
    set_seed(config.training.seed, device_specific=True)
    identity = _identity(config, max_steps, accelerator, prepared, teacher)
    existing = stored_identity(destination, identity)
    if policy == "resume" and existing == identity:
        report(f"{destination} is complete; nothing to resume")
        return None
    if existing:
        other = difference(existing, identity) or "the same inputs"
        report(f"{destination} contains a run that was started with {other}; it is replaced when this run is complete")
    with _folder(destination, identity, policy, accelerator) as folder:
        accelerator.init_trackers(config.name)
        features = FeatureCache(
            folder=folder,
            model=model,
            batch_size=config.training.batch_size,
            accelerator=accelerator,
            max_megabytes=config.training.feature_cache_mb,
            report=report,
            shared=shared,
        )
        targets = teacher.logits(folder, prepared.data.train, accelerator) if teacher else None
        before = measure(config, model, prepared, accelerator)
        Loop(
            config=config,
            heads=prepared.data.heads,
            model=model,
            accelerator=accelerator,
            rows=prepared.splits["train"],
            embedding=prepared.embedding,
            describe_row=lambda number: prepared.data.train[number].excerpt,
            folder=folder,
            max_steps=max_steps,
            features=features,
            teacher=targets,
            validate=lambda: _validate(config, model, prepared, accelerator, features),
            stop=stop,
            report=report,
        ).run()
        if any(trains_backbone(stage, model) for stage in config.training.stages):
            # The best weights may be those of an earlier stage, with another backbone.
            features.clear()
        # A stage without a loss of the heads is not scored.
        if config.training.select == "best" and (folder / BEST_NAME).exists():
            model.load_state_dict(load_file(folder / BEST_NAME))
        model.fold()
        evaluation = _evaluate(config, model, prepared, before, accelerator, features, out_of_fold)
        collected = _score_collected(config, model, prepared, evaluation, accelerator)
        novelty = fit_run_novelty(config, model, prepared, accelerator)
        if accelerator.is_main_process:
            _write(destination, folder, config, model, prepared, evaluation, collected, novelty, identity)
        for line in (*_summary(evaluation), *(collected_lines(collected) if collected else ())):
            report(line)
        for line in missing_lines(config, prepared, novelty) if describe else ():
            report(line)
        accelerator.end_training()
    return evaluation


def dry_run(config: Config, data: Data, report: Report = print) -> None:
    """Validates the configuration, the data and the backbone without training.

    Args:
        config: The configuration.
        data: Its rows.
        report: Receives the data quality report.

    Raises:
        TrainingError: The configuration, the data or the backbone cannot be used.
    """
    prepared = prepare(config, data)
    for line in prepared.report.lines():
        report(line)
    check_stages(config, build_model(config, prepared.backbone, prepared.data.heads))
    open_teacher(config, prepared.data.heads)


def build_model(config: Config, backbone: Backbone, heads: Sequence[HeadConfig]) -> PolyheadModel:
    """Builds a model from a backbone and newly initialized pooling and heads.

    Args:
        config: Pooling, token limit and prompts.
        backbone: The pretrained checkpoint.
        heads: The heads with their labels.

    Raises:
        BackboneError: The weights cannot be read, or do not match the backbone's configuration.
    """
    try:
        return PolyheadModel.from_backbone(
            backbone.folder,
            pooling=config.model.pooling,
            embedding_pooling=config.model.embedding_pooling,
            normalize=config.model.normalize,
            max_tokens=config.model.max_tokens,
            prompts=dict(config.model.prompts),
            pad_token_id=backbone.pad_token_id,
            heads=[head.layer_settings() for head in heads],
        )
    except WeightsError as error:
        raise BackboneError(backbone.reference, str(error)) from error


def _start(config: Config, destination: Path) -> Accelerator:
    precision = config.training.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise config.error(
            "training.mixed_precision", "'fp16' requires a GPU, and none is available: use 'bf16' or 'no'"
        )
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in config.training.trackers:
        if name not in available:
            reason = f"{name!r} is not an installed tracker; installed: {', '.join(available) or 'none'}"
            raise config.error("training.trackers", reason)
    set_seed(config.training.seed)
    folder = in_progress_path(destination)
    # accelerate keeps the precision of the first run of a process; the trials of a sweep may have several.
    AcceleratorState._reset_state()
    return Accelerator(
        # Without a GPU, accelerate detects the other processes only if it is set to use the CPU.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=list(config.training.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / TRACKERS_NAME)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PROCESS_TIMEOUT)],
    )


def _identity(
    config: Config, max_steps: int | None, accelerator: Accelerator, prepared: Prepared, teacher: Teacher | None
) -> Identity:
    return {
        "config": config.model_dump(mode="json"),
        "max_steps": max_steps,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "labels": {head.name: list(head.labels or ()) for head in prepared.data.heads},
        "data_sha256": prepared.digest(),
        "teacher_sha256": teacher.sha256() if teacher else None,
    }


@contextmanager
def _folder(destination: Path, identity: Identity, policy: ResumePolicy, accelerator: Accelerator) -> Iterator[Path]:
    """Opens the folder of the run in progress; the main process creates and removes it for all processes.

    Raises:
        StorageError: A file could not be written in the block.
    """
    try:
        if accelerator.is_main_process:
            with in_progress_run(destination, identity, policy) as folder:
                accelerator.wait_for_everyone()
                yield folder
        else:
            accelerator.wait_for_everyone()
            yield in_progress_path(destination)
    # safetensors reports a full disk with its own class; most errors do not name the file.
    except (OSError, SafetensorError) as error:
        named = isinstance(error, OSError) and (error.filename2 or error.filename)
        raise StorageError(Path(named) if named else in_progress_path(destination), error) from error


def _validate(
    config: Config, model: PolyheadModel, prepared: Prepared, accelerator: Accelerator, features: FeatureCache
) -> Validation:
    rows = prepared.splits[_VALIDATION]
    logits = predict(model, rows, config.training.batch_size, accelerator, features.get(_VALIDATION, rows))
    scores: Validation = {
        head.name: quick_score(head.kind, head.labels or (), logits[head.name], answers)
        for head, answers in zip(prepared.data.heads, rows.labels.arrays(), strict=True)
    }
    if config.data.embedding:
        found = embedding_correlations(model, prepared, config.training.batch_size, accelerator)
        scores |= {SIMILARITY: {"spearman": found.spearman}} if found else {}
    return scores


def _evaluate(  # noqa: PLR0917
    config: Config,
    model: PolyheadModel,
    prepared: Prepared,
    before: EmbeddingQuality,
    accelerator: Accelerator,
    features: FeatureCache,
    out_of_fold: Split | None,
) -> Evaluation:
    def logits(name: str) -> dict[str, Matrix]:
        # The other splits are evaluated only here.
        found = features.get(name, prepared.splits[name]) if name == _VALIDATION else None
        return predict(model, prepared.splits[name], config.training.batch_size, accelerator, found)

    texts = {_VALIDATION: prepared.data.validation, "test": prepared.data.test}
    heads = [head.name for head in prepared.data.heads]
    splits = {
        name: Split(
            texts=[row.text for row in rows],
            locations=[(row.path, row.line) for row in rows],
            targets=dict(zip(heads, prepared.splits[name].labels.arrays(), strict=True)),
            logits=logits(name),
        )
        for name, rows in texts.items()
        if rows or name == _VALIDATION
    }
    validation = splits[_VALIDATION]
    splits[_VALIDATION] = out_of_fold or validation
    unchanged = not any(trains_embedding(stage, model) for stage in config.training.stages)
    after = before if unchanged else measure(config, model, prepared, accelerator)
    found = evaluate_run(
        prepared.data.heads,
        splits,
        similarity(prepared, before, after),
        config.training.seed,
        retrieval(prepared, before, after),
        abstain=config.abstentions,
        set_coverages=config.set_coverages,
    )
    return replace(found, validation=validation)


def _score_collected(
    config: Config, model: PolyheadModel, prepared: Prepared, evaluation: Evaluation, accelerator: Accelerator
) -> dict[str, Any] | None:
    """Returns the content of ``collected.json``; None without collected rows."""
    if prepared.data.collected is None:
        return None
    return score_collected(
        prepared.data.heads,
        prepared.data.collected,
        predict(model, prepared.held_out, config.training.batch_size, accelerator),
        evaluation.temperatures,
        evaluation.thresholds,
    )


def _summary(evaluation: Evaluation) -> Iterator[str]:
    """Yields the results for the terminal."""
    found = evaluation.to_json()
    yield from filter(None, (table(evaluation), embedding_table(found)))
    yield from (abstention.describe(name) for name, abstention in evaluation.abstentions.items())
    yield from (sets.describe(name) for name, sets in evaluation.prediction_sets.items())
    yield from (f"warning: {one}" for one in implausible({split: found[split] for split in evaluation.splits}))


def _write(  # noqa: PLR0917
    destination: Path,
    folder: Path,
    config: Config,
    model: PolyheadModel,
    prepared: Prepared,
    evaluation: Evaluation,
    collected: dict[str, Any] | None,
    novelty: NoveltyModel | None,
    identity: Identity,
) -> None:
    """Writes the run directory atomically."""
    with staged_run(destination) as staging:
        shutil.copy(folder / METRICS_NAME, staging)
        if (folder / TRACKERS_NAME).exists():
            shutil.copytree(folder / TRACKERS_NAME, staging / TRACKERS_NAME)
        write_json(staging / DATA_NAME, prepared.report.to_json())
        write_json(staging / EVALUATION_NAME, evaluation.to_json())
        if collected:
            write_json(staging / COLLECTED_NAME, collected)
        write_run(
            staging,
            config,
            prepared.data.heads,
            model,
            prepared.backbone.tokenizer,
            temperatures=evaluation.temperatures,
            thresholds=evaluation.thresholds,
            promises={name: asdict(found.promise) for name, found in evaluation.abstentions.items()},
            prediction_sets={name: asdict(sets) for name, sets in evaluation.prediction_sets.items()},
            novelty=None if novelty is None else (novelty.to_json(), novelty.matrix),
            reference=run_reference(prepared, evaluation, model.config.max_tokens, novelty),
            identity=identity,
        )
        write_report(staging)
        write_card(staging)

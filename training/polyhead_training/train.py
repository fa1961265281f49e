"""A training run from a configuration to a run directory.

::

    Config --prepare--> rows, backbone --> model --Loop--> trained model --evaluate--> scores --> run directory
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from polyhead_bundle.atomic_directory import recover
from safetensors import SafetensorError
from safetensors.torch import load_file

from polyhead_training.data.dataset import Row
from polyhead_training.data.preparation import Prepared, prepare
from polyhead_training.evaluation.evaluate import Evaluation, Split, evaluate_run, table
from polyhead_training.evaluation.metrics import quick_score
from polyhead_training.evaluation.similarity import Correlations, Similarity, correlations
from polyhead_training.loop.loop import Loop, Validation
from polyhead_training.loop.stages import check_stages
from polyhead_training.reporting.model_card import write_card
from polyhead_training.reporting.report import write_report
from polyhead_training.runs.checkpoint import BEST_NAME
from polyhead_training.runs.in_progress import Identity, Unfinished, difference, unfinished_path, unfinished_run
from polyhead_training.runs.run_directory import (
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
from .config import Config, HeadConfig
from .errors import BackboneError, StorageError
from .model import PolyheadModel
from .predict import embed, predict

# The main process evaluates and writes alone while the others wait for it.
_PATIENCE = timedelta(hours=4)
# Characters of a row's text in a message.
_SHOWN_CHARACTERS = 80


def train(
    config: Config,
    destination: Path,
    *,
    max_steps: int | None = None,
    policy: Unfinished = "refuse",
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Evaluation | None:
    """Trains, evaluates, and writes a run directory; in every process that a launcher started, together.

    Args:
        config: What to train, on what, and how.
        destination: The run directory; a run that stands there already is replaced.
        max_steps: Steps after which training ends early; None for no such end.
        policy: What to do with an unfinished run that is there.
        stop: Whether to stop, asked once a step.
        say: Takes lines for the terminal.

    Returns:
        What the run's ``evaluation.json`` says; None where the run to be resumed is complete.

    Raises:
        TrainingError: The configuration, the data, the backbone or the destination cannot be used, or training went
            wrong or was stopped.
    """
    require_replaceable(destination.resolve())
    accelerator = _start(config, destination)
    if accelerator.is_main_process:
        recover(destination.resolve())
    accelerator.wait_for_everyone()
    say = say if accelerator.is_main_process else _say_nothing
    prepared = prepare(config)
    for line in prepared.report.lines():
        say(line)
    model = build_model(config, prepared.backbone, prepared.data.heads).to(accelerator.device)
    check_stages(config, model)
    # The heads' first weights are the same in every process, dropout is not.
    set_seed(config.training.seed, device_specific=True)
    identity = _identity(config, max_steps, accelerator, prepared)
    stands = stored_identity(destination, identity)
    if policy == "resume" and stands == identity:
        say(f"{destination} is complete: there is nothing to resume")
        return None
    if stands:
        other = difference(stands, identity) or "the same"
        say(f"{destination} holds a run that was started with {other}: it is replaced once this one is complete")
    with _folder(destination, identity, policy, accelerator) as folder:
        accelerator.init_trackers(config.name)
        before = _correlations(config, model, prepared, accelerator)
        Loop(
            config=config,
            heads=prepared.data.heads,
            model=model,
            accelerator=accelerator,
            rows=prepared.splits["train"],
            describe_row=lambda number: _describe(prepared.data.train[number]),
            folder=folder,
            max_steps=max_steps,
            validate=lambda: _validate(config, model, prepared, accelerator),
            stop=stop,
            say=say,
        ).run()
        if config.training.select == "best" and config.training.stages:
            model.load_state_dict(load_file(folder / BEST_NAME))
        evaluation = _evaluate(config, model, prepared, before, accelerator)
        if accelerator.is_main_process:
            _write(destination, folder, config, model, prepared, evaluation, identity)
        for line in table(evaluation):
            say(line)
        accelerator.end_training()
    return evaluation


def check(config: Config, say: Callable[[str], None] = print) -> None:
    """Finds out whether a configuration can be trained, without training.

    Args:
        config: The configuration.
        say: Takes the report on the rows, line by line.

    Raises:
        TrainingError: The configuration, the data or the backbone cannot be used.
    """
    prepared = prepare(config)
    for line in prepared.report.lines():
        say(line)
    check_stages(config, build_model(config, prepared.backbone, prepared.data.heads))


def build_model(config: Config, backbone: Backbone, heads: Sequence[HeadConfig]) -> PolyheadModel:
    """The backbone with pooling and fresh heads on it.

    Args:
        config: Pooling and token limit.
        backbone: The pretrained part.
        heads: The heads with their labels.

    Raises:
        BackboneError: The weights cannot be read.
    """
    try:
        return PolyheadModel.from_backbone(
            backbone.folder,
            pooling=config.model.pooling,
            embedding_pooling=config.model.embedding_pooling,
            normalize=config.model.normalize,
            max_tokens=config.model.max_tokens,
            pad_token_id=backbone.pad_token_id,
            heads=[
                head.model_dump(mode="json", include={"name", "kind", "labels", "hidden_size", "dropout"})
                for head in heads
            ],
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BackboneError(backbone.reference, f"its weights cannot be read: {error}") from error


def _start(config: Config, destination: Path) -> Accelerator:
    precision = config.training.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise config.error("training.mixed_precision", "'fp16' needs a GPU, and there is none: use 'bf16' or 'no'")
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in config.training.trackers:
        if name not in available:
            reason = f"{name!r} is no tracker that is installed; there are: {', '.join(available) or 'none'}"
            raise config.error("training.trackers", reason)
    set_seed(config.training.seed)
    folder = unfinished_path(destination)
    return Accelerator(
        # Without an accelerator it only notices the other processes when told to use the CPU.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=list(config.training.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / TRACKERS_NAME)),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def _identity(config: Config, max_steps: int | None, accelerator: Accelerator, prepared: Prepared) -> Identity:
    return {
        "config": config.model_dump(mode="json"),
        "max_steps": max_steps,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "labels": {head.name: list(head.labels or ()) for head in prepared.data.heads},
        "data_sha256": prepared.digest(),
    }


@contextmanager
def _folder(destination: Path, identity: Identity, policy: Unfinished, accelerator: Accelerator) -> Iterator[Path]:
    """The folder of the run under way: the main process makes and removes it, the others find it made.

    Raises:
        StorageError: The disk did not take what was written in the block.
    """
    try:
        if accelerator.is_main_process:
            with unfinished_run(destination, identity, policy) as folder:
                accelerator.wait_for_everyone()
                yield folder
        else:
            accelerator.wait_for_everyone()
            yield unfinished_path(destination)
    # The library that writes the weights reports a full disk in its own way; neither says which file as a rule.
    except (OSError, SafetensorError) as error:
        named = isinstance(error, OSError) and (error.filename2 or error.filename)
        raise StorageError(Path(named) if named else unfinished_path(destination), error) from error


def _validate(config: Config, model: PolyheadModel, prepared: Prepared, accelerator: Accelerator) -> Validation:
    rows = prepared.splits["validation"]
    logits = predict(model, rows, config.training.batch_size, accelerator)
    return {
        head.name: quick_score(head.kind, logits[head.name], rows.labels[:, column].numpy())
        for column, head in enumerate(prepared.data.heads)
    }


def _describe(row: Row) -> str:
    text = row.text if len(row.text) <= _SHOWN_CHARACTERS else row.text[:_SHOWN_CHARACTERS] + "..."
    return f"{row.path}:{row.line}: {text!r}"


def _correlations(
    config: Config, model: PolyheadModel, prepared: Prepared, accelerator: Accelerator
) -> Correlations | None:
    """What the model's embedding is worth on the pairs of texts; None without pairs."""
    if not prepared.data.similarity:
        return None
    first, second = (embed(model, rows, config.training.batch_size, accelerator) for rows in prepared.pairs)
    return correlations(first, second, np.array([pair.score for pair in prepared.data.similarity]))


def _evaluate(
    config: Config, model: PolyheadModel, prepared: Prepared, before: Correlations | None, accelerator: Accelerator
) -> Evaluation:
    texts = {"validation": prepared.data.validation, "test": prepared.data.test}
    splits = {
        name: Split(
            texts=[row.text for row in rows],
            places=[(row.path, row.line) for row in rows],
            targets=prepared.splits[name].labels.numpy(),
            logits=predict(model, prepared.splits[name], config.training.batch_size, accelerator),
        )
        for name, rows in texts.items()
        if rows or name == "validation"
    }
    after = _correlations(config, model, prepared, accelerator)
    similarity = Similarity(len(prepared.data.similarity), before, after) if before and after else None
    return evaluate_run(prepared.data.heads, splits, similarity, config.training.seed)


def _write(  # noqa: PLR0917
    destination: Path,
    folder: Path,
    config: Config,
    model: PolyheadModel,
    prepared: Prepared,
    evaluation: Evaluation,
    identity: Identity,
) -> None:
    """Writes the run directory, whole or not at all."""
    with staged_run(destination) as staging:
        shutil.copy(folder / METRICS_NAME, staging)
        if (folder / TRACKERS_NAME).exists():
            shutil.copytree(folder / TRACKERS_NAME, staging / TRACKERS_NAME)
        write_json(staging / DATA_NAME, prepared.report.to_json())
        write_json(staging / EVALUATION_NAME, evaluation.to_json())
        write_run(
            staging,
            config,
            prepared.data.heads,
            model,
            prepared.backbone.tokenizer,
            temperatures=evaluation.temperatures,
            thresholds=evaluation.thresholds,
            identity=identity,
        )
        write_report(staging)
        write_card(staging)


def _say_nothing(line: str) -> None:
    """For the processes other than the main one."""

"""The training loop: stages of epochs of steps, with checkpoints.

::

    Sampler --rows of each step--> Stepper --metrics--> TrainingLog
                                           --end of an epoch--> validation --> best.safetensors
                                           --checkpoint--> last.safetensors
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from polyhead_training.config import Config
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.embedding_encoding import EncodedEmbedding
from polyhead_training.data.embedding_sampling import EmbeddingStep, interleave
from polyhead_training.data.sampling import Sampler
from polyhead_training.data.target_tensors import class_labels
from polyhead_training.errors import StoppedError
from polyhead_training.features import FeatureCache, Features
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import SELECTION
from polyhead_training.runs.checkpoint import (
    BEST_NAME,
    Progress,
    load_last,
    restore_average,
    restore_optimizer,
    restore_random_states,
    save_last,
    save_tensors,
)
from polyhead_training.terminal import Report, progress_bar
from polyhead_training.training_config import StageConfig

from .contrastive import ContrastiveObjective, contrastive_epoch
from .distillation import base_embeddings
from .embedding_task import EmbeddingTask
from .fit import HeadFitter
from .loss import Objective
from .stages import Stage, trains_backbone, trains_embedding
from .step import Stepper
from .teacher import TeacherLogits
from .training_log import TrainingLog

# Name of the split with the training rows.
_TRAIN = "train"
# Validation scores by head or data set, and measure, including that of SELECTION; None without labelled rows.
Validation = dict[str, dict[str, float | None]]
# Name of the sentence embedding among the validation scores. No head can have the name of a field.
SIMILARITY = "data.similarity"
# Labelled rows, or rows of an embedding source.
_Step = list[int] | EmbeddingStep


class Loop:
    """Trains a model stage by stage, starting from the last checkpoint.

    Args:
        config: The configuration.
        heads: The heads, in the order of the label columns of the rows.
        model: The model, on the accelerator's device.
        accelerator: Device, mixed precision and processes.
        rows: The training rows.
        embedding: The texts that train the sentence embedding.
        describe_row: Returns the location and text of the row with a number, for error messages.
        folder: Folder of the run in progress.
        max_steps: Steps of the whole run after which it ends early; None for no limit.
        features: Cache of the backbone's vectors while it is frozen.
        teacher: The teacher's logits of the training rows; None for no teacher.
        validate: Scores the model on the validation rows.
        stop: Returns whether a signal requested the end.
        report: Receives messages for the terminal.
    """

    def __init__(
        self,
        *,
        config: Config,
        heads: Sequence[HeadConfig],
        model: PolyheadModel,
        accelerator: Accelerator,
        rows: EncodedRows,
        embedding: EncodedEmbedding,
        describe_row: Callable[[int], str],
        folder: Path,
        max_steps: int | None,
        features: FeatureCache,
        teacher: TeacherLogits | None,
        validate: Callable[[], Validation],
        stop: Callable[[], bool],
        report: Report,
    ) -> None:
        self.config = config.training
        self.model = model
        self.accelerator = accelerator
        self.rows = rows
        self.describe_row = describe_row
        self.folder = folder
        self.max_steps = max_steps
        self.features = features
        self.teacher = teacher
        self.validate = validate
        self.stop = stop
        self.report = report
        self.objective = Objective(heads, config.training, rows.labels).to(accelerator.device)
        self.contrastive = ContrastiveObjective(heads, config.training).to(accelerator.device)
        # One module with all weights that a checkpoint contains.
        self.module = nn.ModuleDict({"model": model, "objective": self.objective})
        size = self.config.batch_size * self.config.gradient_accumulation * accelerator.num_processes
        lengths = [len(ids) for ids in rows.ids]
        self.sampler = Sampler(rows.sources, lengths, rows.labelled(), config.data, size, self.config.seed)
        self.embedding = EmbeddingTask(config, embedding, model, accelerator, size) if embedding.sources else None
        self.log = TrainingLog(folder, [head.name for head in heads], accelerator)
        self.progress = Progress()

    def run(self) -> None:
        """Trains the remaining stages.

        Raises:
            DivergenceError: The loss or its gradient is not finite.
            StoppedError: A signal requested the end; the last checkpoint contains all progress.
            ResumeError: The last checkpoint cannot be read.
        """
        found = load_last(self.folder, self.module)
        if found is not None:
            self.progress = found
            restore_random_states(self.folder, self.accelerator)
            self.report(f"resumed after step {found.steps:,}")
        self.log.begin(self.progress)
        while self.progress.stage < len(self.config.stages):
            # A stage beyond max_steps has no steps.
            if epochs := self._plan(self.progress.stage):
                self._run_stage(self.config.stages[self.progress.stage], epochs)
            self.progress.stage, self.progress.stage_step = self.progress.stage + 1, 0

    def _run_stage(self, config: StageConfig, epochs: Sequence[Sequence[_Step]]) -> None:
        steps, ends = list(itertools.chain(*epochs)), list(itertools.accumulate(map(len, epochs)))
        stage = Stage(self.model, config, len(steps))
        stepper = self._stepper(stage)
        first = self.progress.stage_step
        main = self.accelerator.is_main_process
        with progress_bar(config.name, "steps", len(steps), completed=first, enabled=main) as advance:
            for step in steps[first:]:
                metrics = stepper.take(step, self.stop(), self.describe_row)
                self.progress.steps += 1
                self.progress.stage_step += 1
                self.log.log_step(config.name, self.progress, metrics, distilled=stepper.base is not None)
                advance(f"loss {metrics.loss:.3f}")
                if self.progress.stage_step in ends and config.loss == "heads":
                    with stepper.average.swapped():
                        self._end_epoch(stage, 1 + ends.index(self.progress.stage_step))
                self._save_when_due(stepper, metrics.stop, self.progress.stage_step in ends)
        stepper.average.apply()

    def _stepper(self, stage: Stage) -> Stepper | HeadFitter:
        self.report(_title(stage))
        self.report(stage.describe())
        features = self._features(stage)
        if stage.config.solver == "lbfgs":
            return HeadFitter(
                stage=stage,
                model=self.model,
                objective=self.objective,
                accelerator=self.accelerator,
                rows=self.rows,
                batch_size=self.config.batch_size,
                features=features,
            )
        base = None
        if self.config.distillation and stage.trains_embedding and len(self.rows):
            base = base_embeddings(
                self.folder,
                self.model,
                self.rows,
                self.config.batch_size,
                self.accelerator,
                features or self.features.existing(_TRAIN),
            )
        if stage.trains_backbone:
            self.features.clear()
        stepper = Stepper(
            config=self.config,
            stage=stage,
            model=self.model,
            objective=self.contrastive if stage.config.loss == "contrastive" else self.objective,
            accelerator=self.accelerator,
            rows=self.rows,
            base=base,
            embedding=self.embedding,
            features=features,
            teacher=self.teacher,
            first_step=self.progress.stage_step,
        )
        if self.progress.stage_step:
            restore_optimizer(self.folder, stepper.optimizer)
            restore_average(self.folder, stepper.average.tensors)
            if self.accelerator.scaler is not None and self.progress.scaler is not None:
                self.accelerator.scaler.load_state_dict(self.progress.scaler)
        return stepper

    def _features(self, stage: Stage) -> Features | None:
        """Returns the frozen backbone's vectors of the training rows if that saves computing some of them twice."""
        if stage.trains_backbone:
            return None
        self.features.freeze()
        once = self._frozen_texts() <= len(self.rows) and self.features.shared is None
        if self.progress.stage_step == stage.steps or once:
            return None
        return self.features.get(_TRAIN, self.rows, mixed_precision=True)

    def _frozen_texts(self) -> int:
        """Counts the texts of all steps until the backbone changes, and those of the embeddings before training.

        The count is the same at every step of a stage, so a resumed run makes the same decision.
        """
        texts, left = 0, math.inf if self.max_steps is None else self.max_steps
        embedded = not self.config.distillation
        steps_per_epoch = math.ceil(len(self.rows) / self.sampler.rows_per_step)
        for index, stage in enumerate(self.config.stages):
            every = 1 if stage.solver == "lbfgs" else stage.epochs * steps_per_epoch
            steps = min(left, every) if "heads" in stage.tasks else 0
            left -= steps
            if not steps:
                break
            embeds = not embedded and trains_embedding(stage, self.model)
            embedded = embedded or embeds
            if index >= self.progress.stage:
                texts += len(self.rows) if embeds else 0
                if trains_backbone(stage, self.model):
                    break
                texts += min(int(steps) * self.sampler.rows_per_step, stage.epochs * len(self.rows))
        return texts

    def _plan(self, index: int) -> list[list[_Step]]:
        """Returns the rows of each step of each epoch of a stage, up to ``max_steps``."""
        first = sum(stage.epochs for stage in self.config.stages[:index])
        steps_before = self.progress.steps - self.progress.stage_step
        left = math.inf if self.max_steps is None else self.max_steps - steps_before
        epochs: list[list[_Step]] = []
        for steps in self._epochs(self.config.stages[index], first):
            epochs.append(steps[: int(min(left, len(steps)))])
            left -= len(epochs[-1])
        return [steps for steps in epochs if steps]

    def _epochs(self, stage: StageConfig, first: int) -> Iterator[list[_Step]]:
        """Yields the steps of each epoch of a stage whose first epoch has the number ``first`` in the run."""
        numbers = range(first, first + stage.epochs)
        if stage.solver == "lbfgs":
            yield [list(range(len(self.rows)))]
        elif stage.loss == "contrastive":
            # One epoch for checkpoints: the heads that validation scores have not been trained.
            size, seed = self.sampler.rows_per_step, self.config.seed
            labels = class_labels(self.objective.heads, self.rows.labels)
            yield [step for number in numbers for step in contrastive_epoch(labels, size, seed, number)]
        else:
            for number in numbers:
                yield self._epoch(stage, number)

    def _epoch(self, stage: StageConfig, number: int) -> list[_Step]:
        """Returns the steps of an epoch: those of the labelled rows and of the embedding sources."""
        labelled = self.sampler.epoch(number) if "heads" in stage.tasks else []
        teaches = self.embedding and "embedding" in stage.tasks and trains_embedding(stage, self.model)
        embedding = self.embedding.sampler.epoch(number) if self.embedding and teaches else []
        return interleave(labelled, embedding, self.config.seed, number)

    def _end_epoch(self, stage: Stage, epoch: int) -> None:
        scores = self.validate()
        self.report(self.log.log_epoch(stage.config.name, self.progress, epoch, scores))
        measures = [scores[head.name][SELECTION[head.kind]] for head in self.objective.heads]
        measures += [scores[SIMILARITY]["spearman"]] if SIMILARITY in scores else []
        found = [value for value in measures if value is not None]
        score = sum(found) / len(found) if found else math.inf
        if self.progress.best is None or score >= self.progress.best:
            self.progress.best = score
            if self.accelerator.is_main_process and self.config.select == "best":
                save_tensors(self.folder / BEST_NAME, self.model.state_dict())

    def _save_when_due(self, stepper: Stepper | HeadFitter, stop: bool, epoch_ended: bool) -> None:
        if not (stop or epoch_ended or self.progress.steps % self.config.checkpoint_steps == 0):
            return
        self.log.record_position(self.progress)
        self.progress.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        average = stepper.average.tensors
        save_last(self.folder, self.progress, self.module, stepper.optimizer, self.accelerator, average)
        if stop:
            raise StoppedError(self.progress.steps)


def _title(stage: Stage) -> str:
    if stage.config.solver == "lbfgs":
        return f"stage {stage.config.name}: fit of the heads by L-BFGS, penalty {stage.config.penalty:g}"
    loss = ", contrastive loss" if stage.config.loss == "contrastive" else ""
    return f"stage {stage.config.name}: {stage.steps:,} steps, peak learning rate {stage.config.learning_rate:g}{loss}"

"""The training loop: stages of epochs of steps, with a checkpoint now and then.

::

    Sampler --rows of each step--> Stepper --figures--> metrics
                                           --epoch over--> validation --> best.safetensors
                                           --now and then--> last.safetensors
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from polyhead_training.config import Config, HeadConfig, StageConfig
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.sampling import Sampler
from polyhead_training.errors import StoppedError
from polyhead_training.model import PolyheadModel
from polyhead_training.runs.checkpoint import (
    BEST_NAME,
    Progress,
    load_last,
    restore_optimizer,
    restore_random_states,
    save_last,
    save_tensors,
)

from .distillation import base_embeddings
from .loss import Objective
from .stages import Stage
from .step import Stepper
from .training_log import Metrics, StepFigures

# Figures on validation by head and name, macro_f1 among them; None where there are no labelled rows.
Validation = dict[str, dict[str, float | None]]


class Loop:
    """Trains a model stage by stage, from where the last checkpoint left off.

    Args:
        config: How to train.
        heads: The heads, in the order of the columns of the rows' labels.
        model: The model, on the accelerator's device.
        accelerator: Device, mixed precision and processes.
        rows: Rows to learn from.
        describe_row: Where a row stands and how it reads, by its number.
        folder: Folder of the run that is under way.
        max_steps: Steps of the whole run after which it ends early; None for no such end.
        validate: Scores the model on the validation rows.
        stop: Whether a signal asked for the end.
        say: Takes lines for the terminal.
    """

    def __init__(
        self,
        *,
        config: Config,
        heads: Sequence[HeadConfig],
        model: PolyheadModel,
        accelerator: Accelerator,
        rows: EncodedRows,
        describe_row: Callable[[int], str],
        folder: Path,
        max_steps: int | None,
        validate: Callable[[], Validation],
        stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.config = config.training
        self.model = model
        self.accelerator = accelerator
        self.rows = rows
        self.describe_row = describe_row
        self.folder = folder
        self.max_steps = max_steps
        self.validate = validate
        self.stop = stop
        self.say = say
        self.objective = Objective(heads, config.training, rows.labels).to(accelerator.device)
        # One name for everything that a checkpoint holds the weights of.
        self.module = nn.ModuleDict({"model": model, "objective": self.objective})
        size = self.config.batch_size * self.config.gradient_accumulation * accelerator.num_processes
        lengths = [len(ids) for ids in rows.ids]
        self.sampler = Sampler(rows.entries, lengths, rows.labelled(), config.data, size, self.config.seed)
        self.metrics = Metrics(folder, [head.name for head in heads], accelerator)
        self.progress = Progress()

    def run(self) -> None:
        """Trains what is left of the stages.

        Raises:
            DivergenceError: The loss or its gradient is no longer finite.
            StoppedError: A signal asked for the end; the last checkpoint holds everything up to it.
            ResumeError: The last checkpoint cannot be read.
        """
        found = load_last(self.folder, self.module)
        if found is not None:
            self.progress = found
            restore_random_states(self.folder, self.accelerator)
            self.say(f"resumed after step {found.steps:,}")
        self.metrics.begin(self.progress)
        while self.progress.stage < len(self.config.stages):
            # max_steps may leave a stage without any.
            if epochs := self._plan(self.progress.stage):
                self._run_stage(self.config.stages[self.progress.stage], epochs)
            self.progress.stage, self.progress.stage_step = self.progress.stage + 1, 0

    def _run_stage(self, config: StageConfig, epochs: Sequence[Sequence[list[int]]]) -> None:
        steps, ends = list(itertools.chain(*epochs)), list(itertools.accumulate(map(len, epochs)))
        stage = Stage(self.model, config, len(steps))
        stepper = self._stepper(stage)
        with tqdm(
            total=len(steps),
            initial=self.progress.stage_step,
            desc=stage.config.name,
            unit="step",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,
        ) as bar:
            for number in range(self.progress.stage_step, len(steps)):
                figures = stepper.take(number, steps[number], self.stop(), self.describe_row)
                self._advance(stage, figures, distilled=stepper.base is not None)
                bar.set_postfix(loss=f"{figures.loss:.3f}", refresh=False)
                bar.update()
                if self.progress.stage_step in ends:
                    self._end_epoch(stage, 1 + ends.index(self.progress.stage_step))
                self._save_when_due(stepper, figures.stop, self.progress.stage_step in ends)

    def _stepper(self, stage: Stage) -> Stepper:
        self.say(
            f"stage {stage.config.name}: {stage.steps:,} steps, learning rate up to {stage.config.learning_rate:g}"
        )
        for line in stage.describe():
            self.say(line)
        base = None
        if self.config.distillation and stage.trains_embedding:
            base = base_embeddings(self.folder, self.model, self.rows, self.config.batch_size, self.accelerator)
        stepper = Stepper(
            config=self.config,
            stage=stage,
            model=self.model,
            objective=self.objective,
            accelerator=self.accelerator,
            rows=self.rows,
            base=base,
        )
        if self.progress.stage_step:
            restore_optimizer(self.folder, stepper.optimizer)
            if self.accelerator.scaler is not None and self.progress.scaler is not None:
                self.accelerator.scaler.load_state_dict(self.progress.scaler)
        return stepper

    def _plan(self, index: int) -> list[list[list[int]]]:
        """The rows of each step of each epoch of a stage, as far as ``max_steps`` lets them be reached."""
        first = sum(stage.epochs for stage in self.config.stages[:index])
        begun = self.progress.steps - self.progress.stage_step
        left = math.inf if self.max_steps is None else self.max_steps - begun
        epochs: list[list[list[int]]] = []
        for number in range(first, first + self.config.stages[index].epochs):
            steps = self.sampler.epoch(number)
            epochs.append(steps[: int(min(left, len(steps)))])
            left -= len(epochs[-1])
        return [steps for steps in epochs if steps]

    def _advance(self, stage: Stage, figures: StepFigures, distilled: bool) -> None:
        self.progress.steps += 1
        self.progress.stage_step += 1
        self.metrics.log_step(stage.config.name, self.progress, figures, distilled)

    def _end_epoch(self, stage: Stage, epoch: int) -> None:
        scores = self.validate()
        self.say(self.metrics.log_epoch(stage.config.name, self.progress, epoch, scores))
        found = [value for head in scores.values() if (value := head["macro_f1"]) is not None]
        score = sum(found) / len(found) if found else math.inf
        if self.progress.best is None or score >= self.progress.best:
            self.progress.best = score
            if self.accelerator.is_main_process:
                save_tensors(self.folder / BEST_NAME, self.model.state_dict())

    def _save_when_due(self, stepper: Stepper, stop: bool, epoch_ended: bool) -> None:
        if not (stop or epoch_ended or self.progress.steps % self.config.checkpoint_steps == 0):
            return
        self.metrics.note(self.progress)
        self.progress.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        save_last(self.folder, self.progress, self.module, stepper.optimizer, self.accelerator)
        if stop:
            raise StoppedError(self.progress.steps)

"""The training loop: stages of epochs of steps."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .batching import Batch, EncodedRows
from .config import HeadConfig, StageConfig, TrainingConfig
from .errors import DivergenceError
from .evaluate import Scores, evaluate
from .loss import total_loss
from .model import PolyheadModel
from .stages import begin_stage, build_optimizer, build_schedule, describe, set_training_mode

# Steps between two lines of metrics: often enough for a curve, rarely enough for a file that can be read.
_LOG_EVERY = 10


class Loop:
    """Trains a model stage by stage.

    Args:
        config: How to train.
        heads: The heads, in the order of the columns of the rows' labels.
        model: The model, on the accelerator's device.
        accelerator: Device and mixed precision.
        train: Rows to learn from.
        validation: Rows that are evaluated after each epoch.
        metrics: JSON-lines file that is appended to.
        max_steps: Steps of the whole run after which it ends early; None for no such end.
        say: Takes lines for the terminal.
    """

    def __init__(
        self,
        *,
        config: TrainingConfig,
        heads: Sequence[HeadConfig],
        model: PolyheadModel,
        accelerator: Accelerator,
        train: EncodedRows,
        validation: EncodedRows,
        metrics: Path,
        max_steps: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.heads = heads
        self.model = model
        self.accelerator = accelerator
        self.train = train
        self.validation = validation
        self.metrics = metrics
        self.max_steps = max_steps
        self.say = say
        self.steps = 0
        self._chooser = random.Random(config.seed)  # noqa: S311
        self._began = time.monotonic()

    def run(self) -> Scores:
        """Trains all stages.

        Returns:
            The validation scores of the trained model.

        Raises:
            DivergenceError: The loss or its gradient is no longer finite.
        """
        scores: Scores = {}
        for stage in self.config.stages:
            if self._steps_left() != 0:
                scores = self._run_stage(stage)
        return scores

    def _run_stage(self, stage: StageConfig) -> Scores:
        begin_stage(self.model, stage)
        epochs = self._plan(stage)
        steps = sum(map(len, epochs))
        self.say(f"stage {stage.name}: {steps} steps, learning rate up to {stage.learning_rate:g}")
        for line in describe(self.model):
            self.say(line)
        optimizer = build_optimizer(self.model, stage.learning_rate, self.config.weight_decay)
        schedule = build_schedule(optimizer, steps, self.config.warmup)
        # It would unscale the gradients of every optimizer that it knows, an earlier stage's too, and keep their state.
        self.accelerator.free_memory()
        optimizer, schedule = self.accelerator.prepare(optimizer, schedule)
        scores: Scores = {}
        with tqdm(total=steps, desc=stage.name, unit="step", disable=None, leave=False) as progress:
            for number, batches in enumerate(epochs, start=1):
                for loss in self._run_epoch(stage, batches, optimizer, schedule):
                    progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    progress.update()
                scores = evaluate(self.model, self.validation, self.heads, self.config.batch_size)
                self._log_epoch(stage, number, scores)
        return scores

    def _plan(self, stage: StageConfig) -> list[list[list[int]]]:
        """The numbers of the rows of each step of each epoch, as far as ``max_steps`` lets them be reached."""
        left = self._steps_left()
        epochs: list[list[list[int]]] = []
        for _ in range(stage.epochs):
            epochs.append(self.train.shuffled(self.config.batch_size, self._chooser)[:left])
            left = None if left is None else left - len(epochs[-1])
        return [steps for steps in epochs if steps]

    def _run_epoch(
        self, stage: StageConfig, batches: Sequence[Sequence[int]], optimizer: Any, schedule: Any
    ) -> Iterator[float]:
        """Takes one step a batch; yields each step's loss."""
        set_training_mode(self.model)
        for numbers in batches:
            loss, losses = self._forward(self.train.batch(numbers, self.accelerator.device))
            self.steps += 1
            if not torch.isfinite(loss):
                raise DivergenceError(stage.name, self.steps)
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            # With fp16 it is the scaler's business: it leaves the step out and scales less.
            if self.config.mixed_precision != "fp16" and not torch.isfinite(norm):
                raise DivergenceError(stage.name, self.steps)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if self.steps % _LOG_EVERY == 0:
                self._log_step(stage, loss, losses, learning_rate)
            yield float(loss.detach())

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.accelerator.autocast():
            outputs = self.model(batch.input_ids, batch.attention_mask)
        return total_loss(outputs.logits, batch.labels, self.heads, self.config.loss_weights)

    def _steps_left(self) -> int | None:
        return None if self.max_steps is None else self.max_steps - self.steps

    def _log_step(self, stage: StageConfig, loss: Tensor, losses: dict[str, Tensor], learning_rate: float) -> None:
        heads = {name: float(value.detach()) for name, value in losses.items()}
        self._log({"stage": stage.name, "loss": float(loss.detach()), "losses": heads, "learning_rate": learning_rate})

    def _log_epoch(self, stage: StageConfig, epoch: int, scores: Scores) -> None:
        accuracies = {name: score.accuracy for name, score in scores.items()}
        self._log({"stage": stage.name, "epoch": epoch, "validation_accuracy": accuracies})
        figures = ", ".join(f"{name} {value:.4f}" for name, value in accuracies.items() if value is not None)
        seconds = time.monotonic() - self._began
        self.say(f"  epoch {epoch}, {self.steps} steps, {seconds:.0f} s: validation accuracy {figures or 'of no rows'}")

    def _log(self, values: dict[str, Any]) -> None:
        line = {"step": self.steps, "seconds": round(time.monotonic() - self._began, 3), **values}
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

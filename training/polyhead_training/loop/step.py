"""A training step: gradients of its rows, summed over micro-batches and processes, then one optimizer update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from polyhead_training.config import TrainingConfig
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.sampling import micro_batches
from polyhead_training.errors import DivergenceError
from polyhead_training.features import Features, row_outputs
from polyhead_training.model import PolyheadModel

from .distillation import BaseEmbeddings
from .loss import Losses, Objective, Totals
from .stages import Stage
from .training_log import StepMetrics


class Stepper:
    """Performs the steps of one stage.

    The model is not wrapped for distributed training. Each process accumulates the gradients of its rows' share of the
    loss, and one sum over the processes yields the gradient of the whole step. This holds for heads without a labelled
    row in some process and for layers that are unfrozen later.

    Args:
        config: Training hyperparameters.
        stage: The parts that train and their learning rates.
        model: The model.
        objective: The loss.
        accelerator: Device, mixed precision and processes.
        rows: The training rows.
        base: Embeddings of the rows before training; None for no distillation.
        features: The frozen backbone's vectors of the rows; None to compute them in every step.
        first_step: Step of the stage to start from, counted from 0.
    """

    def __init__(
        self,
        *,
        config: TrainingConfig,
        stage: Stage,
        model: PolyheadModel,
        objective: Objective,
        accelerator: Accelerator,
        rows: EncodedRows,
        base: BaseEmbeddings | None,
        features: Features | None = None,
        first_step: int = 0,
    ) -> None:
        self.config = config
        self.stage = stage
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.rows = rows
        self.base = base
        self.features = features
        weighting = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = stage.build_optimizer(config.weight_decay, weighting)
        self.scheduler = stage.build_scheduler(self.optimizer, config.warmup, first_step)
        self._parameters = [*stage.parameters(), *weighting]
        # The accelerator would also unscale the gradients of the optimizers of earlier stages and keep their state.
        accelerator.free_memory()
        self._prepared: Any = accelerator.prepare(self.optimizer)
        if accelerator.scaler is not None:
            # The scaler is initialized by its first loss, which a process without rows in the first step lacks.
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))

    def take(self, rows: Sequence[int], stop: bool, describe_row: Callable[[int], str]) -> StepMetrics:
        """Performs the next step.

        Args:
            rows: Numbers of the rows of the step, over all processes.
            stop: Whether this process received a request to stop.
            describe_row: Returns the location and text of a row, for error messages.

        Raises:
            DivergenceError: The loss or its gradient is not finite.
        """
        number = self.scheduler.last_epoch
        self.stage.begin_step(number)
        rate = self.stage.config.learning_rate * self.stage.schedule(number, self.config.warmup)
        totals = self.objective.totals(self.rows.labels[list(rows)])
        metrics = StepMetrics.zero((totals.heads > 0).tolist(), rate, self.accelerator.device)
        batches = micro_batches(rows, self.config.batch_size)
        for numbers in batches[self.accelerator.process_index :: self.accelerator.num_processes]:
            losses = self._forward(numbers, totals)
            self.accelerator.backward(losses.total)
            metrics.add(losses, [len(self.rows.ids[row]) for row in numbers])
        if stop:
            metrics.request_stop()
        self._sum_over_processes(metrics)
        if not self._update(metrics.loss):
            diverging = self._diverging_rows(rows, totals)
            raise DivergenceError(self.stage.config.name, number + 1, [describe_row(row) for row in diverging])
        return metrics

    def _forward(self, numbers: Sequence[int], totals: Totals) -> Losses:
        device = self.accelerator.device
        with self.accelerator.autocast():
            outputs = row_outputs(self.model, self.rows, numbers, self.features)
        base = self.base.batch(numbers, device) if self.base else None
        losses: Losses = self.objective(outputs, self.rows.labels[list(numbers)].to(device), totals, base)
        return losses

    def _sum_over_processes(self, metrics: StepMetrics) -> None:
        """Sums gradients and metrics over the processes, in one message."""
        if self.accelerator.num_processes == 1:
            return
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([metrics.values, *(grad.flatten() for grad in grads)])
        parts = self.accelerator.reduce(flat, "sum").split([len(metrics.values), *(grad.numel() for grad in grads)])
        metrics.values = parts[0]
        for parameter, part in zip(trained, parts[1:], strict=True):
            parameter.grad = part.view_as(parameter)

    def _update(self, loss: float) -> bool:
        """Clips the gradients and updates the weights; returns False, without an update, if a value is not finite."""
        if not math.isfinite(loss):
            return False
        norm: Tensor = self.accelerator.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        # The fp16 scaler skips updates with infinite gradients and lowers its scale, as long as that can help.
        scaler = self.accelerator.scaler
        if (scaler is None or scaler.get_scale() < 1.0) and not torch.isfinite(norm):
            return False
        self._prepared.step()
        self._prepared.zero_grad()
        with warnings.catch_warnings():
            # torch warns if the fp16 scaler skipped the first update of a stage, which is normal.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
            self.scheduler.step()
        return True

    def _diverging_rows(self, rows: Sequence[int], totals: Totals) -> list[int]:
        """Returns the rows of a step whose own loss or gradient is not finite."""
        marks = torch.zeros(len(rows), device=self.accelerator.device)
        for index in range(self.accelerator.process_index, len(rows), self.accelerator.num_processes):
            self._prepared.zero_grad()
            loss = self._forward([rows[index]], totals).total
            self.accelerator.backward(loss)
            grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            finite = torch.isfinite(loss) and all(bool(torch.isfinite(grad).all()) for grad in grads)
            marks[index] = not finite
        found = self.accelerator.reduce(marks, "sum").tolist()
        return [row for row, mark in zip(rows, found, strict=True) if mark]

"""One step of training: the gradients of its rows, summed over passes and processes, and what the optimizer does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from polyhead_training.config import TrainingConfig
from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.sampling import passes
from polyhead_training.errors import DivergenceError
from polyhead_training.model import PolyheadModel

from .distillation import BaseEmbeddings
from .loss import Losses, Objective, Totals
from .stages import Stage
from .training_log import StepFigures


class Stepper:
    """Takes the steps of one stage.

    The model is not wrapped: each process adds up the gradients of its rows' share of the loss, and one sum over the
    processes makes them the whole step's, heads without a labelled row and layers that join later included.

    Args:
        config: How to train.
        stage: What trains, and how fast.
        model: The model.
        objective: What is minimised.
        accelerator: Device, mixed precision and processes.
        rows: The training rows.
        base: Their embeddings before training; None for no distillation.
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
    ) -> None:
        self.config = config
        self.stage = stage
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.rows = rows
        self.base = base
        weighting = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = stage.build_optimizer(config.weight_decay, weighting)
        self._parameters = [*stage.parameters(), *weighting]
        # It would unscale the gradients of every optimizer that it knows, an earlier stage's too, and keep their state.
        accelerator.free_memory()
        self._prepared: Any = accelerator.prepare(self.optimizer)
        if accelerator.scaler is not None:
            # It takes its scale with the first loss, which a process without rows in the first step does not have.
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))

    def take(self, number: int, rows: Sequence[int], stop: bool, describe_row: Callable[[int], str]) -> StepFigures:
        """Takes a step.

        Args:
            number: Number of the step in the stage, counted from 0.
            rows: Numbers of the rows of the step, over all processes.
            stop: Whether this process was asked to stop.
            describe_row: Where a row stands and how it reads, by its number.

        Raises:
            DivergenceError: The loss or its gradient is not finite.
        """
        self.stage.begin_step(number)
        rate = self.stage.set_learning_rate(self.optimizer, number, self.config.warmup)
        figures = StepFigures.zero(len(self.objective.heads), rate, self.accelerator.device)
        totals = self.objective.totals(self.rows.labels[list(rows)])
        groups = passes(rows, self.config.batch_size)
        for numbers in groups[self.accelerator.process_index :: self.accelerator.num_processes]:
            losses = self._forward(numbers, totals)
            self.accelerator.backward(losses.total)
            figures.add(losses, [len(self.rows.ids[row]) for row in numbers])
        if stop:
            figures.ask_to_stop()
        self._sum_over_processes(figures)
        if not self._update(figures.loss):
            offenders = self._offenders(rows, totals)
            raise DivergenceError(self.stage.config.name, number + 1, [describe_row(row) for row in offenders])
        return figures

    def _forward(self, numbers: Sequence[int], totals: Totals) -> Losses:
        batch = self.rows.batch(numbers, self.accelerator.device)
        with self.accelerator.autocast():
            outputs = self.model(batch.input_ids, batch.attention_mask)
        base = self.base.batch(numbers, self.accelerator.device) if self.base else None
        losses: Losses = self.objective(outputs, batch.labels, totals, base)
        return losses

    def _sum_over_processes(self, figures: StepFigures) -> None:
        """Sums gradients and figures over the processes, in one message."""
        if self.accelerator.num_processes == 1:
            return
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([figures.values, *(grad.flatten() for grad in grads)])
        parts = self.accelerator.reduce(flat, "sum").split([len(figures.values), *(grad.numel() for grad in grads)])
        figures.values = parts[0]
        for parameter, part in zip(trained, parts[1:], strict=True):
            parameter.grad = part.view_as(parameter)

    def _update(self, loss: float) -> bool:
        """Clips the gradients and steps; does neither and says so where something is not finite."""
        if not math.isfinite(loss):
            return False
        norm: Tensor = self.accelerator.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        # With fp16 it is the scaler's business: it leaves the step out and scales less, as long as that can help.
        scaler = self.accelerator.scaler
        if (scaler is None or scaler.get_scale() < 1.0) and not torch.isfinite(norm):
            return False
        self._prepared.step()
        self._prepared.zero_grad()
        return True

    def _offenders(self, rows: Sequence[int], totals: Totals) -> list[int]:
        """The rows of a step of which the loss or its gradient is not finite, each on its own."""
        marks = torch.zeros(len(rows), device=self.accelerator.device)
        for place in range(self.accelerator.process_index, len(rows), self.accelerator.num_processes):
            self._prepared.zero_grad()
            loss = self._forward([rows[place]], totals).total
            self.accelerator.backward(loss)
            grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            finite = torch.isfinite(loss) and all(bool(torch.isfinite(grad).all()) for grad in grads)
            marks[place] = not finite
        found = self.accelerator.reduce(marks, "sum").tolist()
        return [row for row, mark in zip(rows, found, strict=True) if mark]

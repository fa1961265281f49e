"""A training step: gradients of its rows, summed over micro-batches and processes, then one optimizer update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.embedding_sampling import EmbeddingStep
from polyhead_training.data.sampling import micro_batches
from polyhead_training.data.target_tensors import Targets
from polyhead_training.errors import DivergenceError
from polyhead_training.features import Features, row_outputs
from polyhead_training.model import Outputs, PolyheadModel
from polyhead_training.training_config import TrainingConfig

from .agreement import mean_losses, r_drop_loss, teacher_loss
from .averaging import Average
from .contrastive import ContrastiveObjective
from .distillation import BaseEmbeddings
from .embedding_task import EmbeddingTask
from .loss import Losses, Objective, Totals
from .stages import Stage
from .teacher import TeacherLogits
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
        objective: The loss; that of a contrastive stage has the same interface.
        accelerator: Device, mixed precision and processes.
        rows: The training rows.
        base: Embeddings of the rows before training; None for no distillation.
        embedding: Computes the gradients of the steps of embedding training texts; None without such steps.
        features: The frozen backbone's vectors of the rows; None to compute them in every step.
        teacher: The teacher's logits of the rows; None for no teacher.
        first_step: Step of the stage to start from, counted from 0.
    """

    def __init__(
        self,
        *,
        config: TrainingConfig,
        stage: Stage,
        model: PolyheadModel,
        objective: Objective | ContrastiveObjective,
        accelerator: Accelerator,
        rows: EncodedRows,
        base: BaseEmbeddings | None,
        embedding: EmbeddingTask | None = None,
        features: Features | None = None,
        teacher: TeacherLogits | None = None,
        first_step: int = 0,
    ) -> None:
        self.config = config
        self.stage = stage
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.rows = rows
        self.base = base
        self.embedding = embedding
        self.features = features
        self.teacher = teacher
        self.average = Average(config, stage)
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

    def take(self, step: Sequence[int] | EmbeddingStep, stop: bool, describe_row: Callable[[int], str]) -> StepMetrics:
        """Performs the next step.

        Args:
            step: Numbers of the labelled rows of the step, over all processes, or rows of an embedding source.
            stop: Whether this process received a request to stop.
            describe_row: Returns the location and text of a row, for error messages.

        Raises:
            DivergenceError: The loss or its gradient is not finite.
        """
        number = self.scheduler.last_epoch
        self.stage.begin_step(number)
        rate = self.stage.config.learning_rate * self.stage.schedule(number, self.config.warmup)
        if isinstance(step, EmbeddingStep):
            metrics = self._embedding_gradients(step, rate)
        else:
            metrics = self._labelled_gradients(step, rate)
        if stop:
            metrics.request_stop()
        self._sum_over_processes(metrics)
        if not self._update(metrics.loss):
            if isinstance(step, EmbeddingStep):
                diverging = self.embedding.diverging_rows(step) if self.embedding else []
            else:
                diverging = [describe_row(row) for row in self._diverging_rows(step)]
            raise DivergenceError(self.stage.config.name, number + 1, diverging)
        self.average.update(number + 1)
        return metrics

    def _labelled_gradients(self, rows: Sequence[int], rate: float) -> StepMetrics:
        totals = self.objective.totals(self.rows.labels.rows(rows))
        metrics = self._metrics((totals.heads > 0).tolist(), rate)
        batches = micro_batches(rows, self.config.batch_size)
        for numbers in batches[self.accelerator.process_index :: self.accelerator.num_processes]:
            losses = self._forward(numbers, totals)
            self.accelerator.backward(losses.total)
            metrics.add(losses, [len(self.rows.ids[row]) for row in numbers])
        return metrics

    def _embedding_gradients(self, step: EmbeddingStep, rate: float) -> StepMetrics:
        if self.embedding is None:
            raise ValueError("a step of embedding training texts requires their task")
        found = self.embedding.backward(step)
        metrics = self._metrics([False] * len(self.objective.heads), rate, step.source)
        # Every process has the loss of the whole step.
        if self.accelerator.is_main_process:
            metrics.add_embedding(found)
        return metrics

    def _metrics(self, labelled: Sequence[bool], rate: float, source: int | None = None) -> StepMetrics:
        sources = self.embedding.names if self.embedding else []
        return StepMetrics.zero(labelled, rate, self.accelerator.device, sources, source)

    def _forward(self, numbers: Sequence[int], totals: Totals) -> Losses:
        device = self.accelerator.device
        labels = self.rows.labels.rows(numbers).to(device)
        base = self.base.batch(numbers, device) if self.base else None
        outputs, losses = self._pass(numbers, labels, totals, base)
        if not isinstance(self.objective, Objective):
            # A contrastive stage trains no heads, whose predictions could agree.
            return losses
        total = losses.total.new_zeros(())
        if self.config.r_drop:
            twin, twin_losses = self._pass(numbers, labels, totals, base)
            losses = mean_losses(losses, twin_losses)
            total = self.config.r_drop * r_drop_loss(self.objective, outputs.logits, twin.logits, totals)
        if self.teacher:
            targets, temperature = self.teacher.batch(numbers, device), self.config.teacher_temperature
            found = teacher_loss(self.objective, targets, outputs.logits, totals, temperature)
            total = total + self.config.teacher_weight * found
        return losses._replace(total=losses.total + total)

    def _pass(
        self, numbers: Sequence[int], labels: Targets, totals: Totals, base: Tensor | None
    ) -> tuple[Outputs, Losses]:
        """Runs the model on the rows with these numbers, and computes their share of the step's loss."""
        with self.accelerator.autocast():
            outputs = row_outputs(self.model, self.rows, numbers, self.features)
        return outputs, self.objective(outputs, labels, totals, base)

    def _sum_over_processes(self, metrics: StepMetrics) -> None:
        """Sums gradients and metrics over the processes, in one message."""
        if self.accelerator.num_processes == 1:
            return
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        present = metrics.values.new_tensor([p.grad is not None for p in trained])
        flat = torch.cat([metrics.values, present, *(grad.flatten() for grad in grads)])
        sizes = [len(metrics.values), len(present), *(grad.numel() for grad in grads)]
        parts = self.accelerator.reduce(flat, "sum").split(sizes)
        metrics.values = parts[0]
        for parameter, found, part in zip(trained, parts[1].tolist(), parts[2:], strict=True):
            # A parameter without a gradient in any process, such as a head's in a step of embedding texts, stays as is.
            parameter.grad = part.view_as(parameter) if found else None

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

    def _diverging_rows(self, rows: Sequence[int]) -> list[int]:
        """Returns the rows of a step whose own loss or gradient is not finite."""
        totals = self.objective.totals(self.rows.labels.rows(rows))
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

"""Fit of the heads on the vectors of a frozen backbone: all rows at once, until the loss no longer falls.

::

    rows --backbone, pooling, once--> inputs of the heads (rows, F) --L-BFGS over loss + penalty--> weights of the heads
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from polyhead_training.data.collation import EncodedRows
from polyhead_training.data.embedding_sampling import EmbeddingStep
from polyhead_training.data.sampling import micro_batches
from polyhead_training.data.target_tensors import Targets
from polyhead_training.errors import DivergenceError
from polyhead_training.features import Features
from polyhead_training.model import Outputs, PolyheadModel
from polyhead_training.training_config import TrainingConfig

from .averaging import Average
from .distillation import BaseEmbeddings
from .loss import Losses, Objective
from .stages import Stage
from .training_log import StepMetrics

_MAX_ITERATIONS = 500
# Largest component of the gradient, and largest change of the loss or a weight, at the end.
_GRADIENT_TOLERANCE, _CHANGE_TOLERANCE = 1e-6, 1e-10


class HeadFitter:
    """Performs the only step of a stage with the solver lbfgs; has the interface of ``Stepper``.

    Every process fits the heads by itself on the same numbers; only the backbone's work is shared.

    Args:
        stage: The heads that train, and their penalty.
        model: The model.
        objective: The loss.
        accelerator: Device, mixed precision and processes.
        rows: The training rows.
        batch_size: Texts per forward pass of the backbone.
        features: The frozen backbone's vectors of the rows; None to compute them.
    """

    base: BaseEmbeddings | None = None
    optimizer: Optimizer | None = None

    def __init__(
        self,
        *,
        stage: Stage,
        model: PolyheadModel,
        objective: Objective,
        accelerator: Accelerator,
        rows: EncodedRows,
        batch_size: int,
        features: Features | None,
    ) -> None:
        self.stage = stage
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.rows = rows
        self.batch_size = batch_size
        self.features = features
        # A single step needs none.
        self.average = Average(TrainingConfig(), stage)

    def take(self, rows: Sequence[int] | EmbeddingStep, stop: bool, describe_row: Callable[[int], str]) -> StepMetrics:
        """Fits the heads; takes the same arguments as ``Stepper.take``.

        Raises:
            DivergenceError: The loss is not finite.
        """
        del describe_row
        if isinstance(rows, EmbeddingStep):
            raise TypeError("the heads are fitted on labelled rows")
        self.stage.begin_step(0)
        # Also the heads' dropout is off: the penalty regularizes.
        self.model.eval()
        labels = self.rows.labels.rows(rows).to(self.accelerator.device)
        inputs = self._inputs(rows)
        losses = self._fit(inputs, labels)
        metrics = StepMetrics.zero(labels.labelled().any(dim=0).tolist(), 0.0, self.accelerator.device)
        if not torch.isfinite(losses.total):
            raise DivergenceError(self.stage.config.name, 1, [])
        metrics.add(losses, [len(self.rows.ids[row]) for row in rows])
        if stop:
            metrics.request_stop()
        return metrics

    def _inputs(self, rows: Sequence[int]) -> Tensor:
        """Computes the inputs of the heads, (rows, F), on the accelerator's device."""
        batches = micro_batches(rows, self.batch_size)
        positions = {row: position for position, row in enumerate(rows)}
        width = next(module.in_features for module in self.model.heads.modules() if isinstance(module, nn.Linear))
        inputs = torch.zeros(len(rows), width, device=self.accelerator.device)
        with torch.no_grad(), self.accelerator.autocast():
            for numbers in batches[self.accelerator.process_index :: self.accelerator.num_processes]:
                inputs[[positions[row] for row in numbers]] = self._pooled(numbers).float()  # (B, F)
        # Each row is computed by one process and is zero in the others.
        total: Tensor = self.accelerator.reduce(inputs, "sum")
        return total

    def _pooled(self, numbers: Sequence[int]) -> Tensor:
        if self.features is not None:
            return self.model.pool(self.features.batch(numbers, self.model.device))[1]
        batch = self.rows.batch(numbers, self.model.device)
        return self.model.pool(self.model.encode(batch.input_ids, batch.attention_mask))[1]

    def _fit(self, inputs: Tensor, labels: Targets) -> Losses:
        """Minimizes the mean loss of the rows plus the penalty; returns the losses at the minimum."""
        totals = self.objective.totals(labels)
        rows = labels.labelled().sum(dim=0).clamp(min=1)  # (heads,)
        # As the losses are means over the rows of a head, so is the penalty.
        weights = 0.5 * self.stage.config.penalty * self.objective.loss_weights / rows  # (heads,)

        def losses() -> Losses:
            logits = {name: head(inputs) for name, head in self.model.heads.items()}
            found: Losses = self.objective(Outputs(inputs, logits), labels, totals, None)
            return found

        def closure() -> Tensor:
            optimizer.zero_grad()
            squares = torch.stack([_squares(self.model.heads[head.name]) for head in self.objective.heads])  # (heads,)
            total: Tensor = losses().total + (weights * squares).sum()
            total.backward()  # type: ignore[no-untyped-call]  # torch types it so
            return total

        optimizer = torch.optim.LBFGS(
            self.stage.parameters(),
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=_GRADIENT_TOLERANCE,
            tolerance_change=_CHANGE_TOLERANCE,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch types it so
        # The next stage would add its first gradient to those of this stage, which learned loss weights collect too.
        optimizer.zero_grad()
        self.objective.zero_grad()
        with torch.no_grad():
            return losses()


def _squares(head: nn.Module) -> Tensor:
    """Returns the sum of the squared weights of a head, without its biases."""
    return torch.stack([parameter.square().sum() for parameter in head.parameters() if parameter.ndim > 1]).sum()

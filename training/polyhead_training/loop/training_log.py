"""Training metrics: values of each step, and the log that writes them to ``metrics.jsonl`` and the trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from polyhead_bundle.atomic_directory import sync
from torch import Tensor

from polyhead_training.errors import ResumeError
from polyhead_training.runs.checkpoint import Progress
from polyhead_training.runs.run_directory import METRICS_NAME
from polyhead_training.units import format_duration

from .embedding_task import EmbeddingLoss
from .loss import Losses

# Steps between two lines of metrics: often enough for a curve, rarely enough to keep the file readable.
_LOG_STEPS = 10
# Values of a step before the heads' losses: total loss, distillation, tokens, padded tokens, stop requests.
_FIXED_VALUES = 5
_STOP_REQUESTS = 4


@dataclass
class StepMetrics:
    """Metrics of one step.

    Attributes:
        learning_rate: The stage's learning rate in the step.
        labelled: For each head, whether any row of the step, in any process, has a label for it.
        values: (5 + heads + sources,) total loss, distillation, tokens, tokens with padding, stop requests, each head's
            loss, each embedding source's loss; sums over micro-batches and processes.
        sources: Names of the embedding sources.
        source: Index of the embedding source of the step; None for a step of labelled rows.
    """

    learning_rate: float
    labelled: Sequence[bool]
    values: Tensor
    sources: Sequence[str] = ()
    source: int | None = None

    @classmethod
    def zero(
        cls,
        labelled: Sequence[bool],
        learning_rate: float,
        device: torch.device,
        sources: Sequence[str] = (),
        source: int | None = None,
    ) -> StepMetrics:
        """Returns the metrics before the first micro-batch."""
        values = torch.zeros(_FIXED_VALUES + len(labelled) + len(sources), device=device)
        return cls(learning_rate, labelled, values, sources, source)

    def add(self, losses: Losses, lengths: Sequence[int]) -> None:
        """Adds the losses of a micro-batch of texts with these lengths in tokens."""
        work = self.values.new_tensor([sum(lengths), max(lengths) * len(lengths), 0.0])
        found = torch.cat([losses.total[None], losses.distillation[None], work, losses.heads]).detach()
        self.values[: len(found)] += found

    def add_embedding(self, found: EmbeddingLoss) -> None:
        """Adds the loss of a step of embedding training texts."""
        self.values[0] += found.weight * found.loss
        self.values[2] += sum(map(sum, found.lengths))
        self.values[3] += sum(max(part) * len(part) for part in found.lengths)
        self.values[_FIXED_VALUES + len(self.labelled) + found.source] += found.loss

    def request_stop(self) -> None:
        """Records that this process received a request to stop."""
        self.values[_STOP_REQUESTS] += 1

    @property
    def loss(self) -> float:
        """Total loss."""
        return float(self.values[0])

    @property
    def stop(self) -> bool:
        """Whether any process received a request to stop."""
        return float(self.values[_STOP_REQUESTS]) > 0

    def to_json(self, heads: Sequence[str], distilled: bool) -> dict[str, Any]:
        """Returns the content of a line of ``metrics.jsonl``; the loss of a head without labels in the step is None."""
        total, distillation, tokens, padded_tokens, _, *losses = self.values.tolist()
        embedding = {
            name: loss if index == self.source else None
            for index, (name, loss) in enumerate(zip(self.sources, losses[len(heads) :], strict=True))
        }
        return {
            "loss": total,
            "losses": {
                head: loss if labelled else None
                for head, loss, labelled in zip(heads, losses[: len(heads)], self.labelled, strict=True)
            },
            **({"embedding": embedding} if embedding else {}),
            **({"distillation": distillation} if distilled and self.source is None else {}),
            "learning_rate": self.learning_rate,
            "tokens": int(tokens),
            "padding": round(1.0 - tokens / padded_tokens, 4),
        }


class TrainingLog:
    """Writes the metrics of a run to ``metrics.jsonl`` and the trackers, in the main process only.

    Args:
        folder: Folder of the run in progress.
        heads: Names of the heads.
        accelerator: The processes and the trackers.
    """

    def __init__(self, folder: Path, heads: Sequence[str], accelerator: Accelerator) -> None:
        self._path = folder / METRICS_NAME
        self._heads = tuple(heads)
        self._accelerator = accelerator
        self._start = time.monotonic()

    def begin(self, progress: Progress) -> None:
        """Continues after the last checkpoint: removes the lines of steps that will be repeated.

        Raises:
            ResumeError: The file lacks lines of completed steps.
        """
        self._start = time.monotonic() - progress.seconds
        if self._accelerator.is_main_process:
            self._path.touch()
            if self._path.stat().st_size < progress.metrics_bytes:
                raise ResumeError(self._path, "is shorter than at the last checkpoint; start again with --restart")
            with self._path.open("r+b") as stream:
                stream.truncate(progress.metrics_bytes)

    def record_position(self, progress: Progress) -> None:
        """Stores the elapsed time and the length of the metrics file in the progress of a checkpoint."""
        progress.seconds = self._seconds()
        if self._accelerator.is_main_process:
            sync(self._path)
            progress.metrics_bytes = self._path.stat().st_size

    def log_step(self, stage: str, progress: Progress, metrics: StepMetrics, distilled: bool) -> None:
        """Logs the metrics of every tenth step."""
        if progress.steps % _LOG_STEPS == 0:
            self._log(progress, {"stage": stage, **metrics.to_json(self._heads, distilled)})

    def log_epoch(self, stage: str, progress: Progress, epoch: int, scores: Mapping[str, Any]) -> str:
        """Logs the validation scores of an epoch; returns a message for the terminal."""
        self._log(progress, {"stage": stage, "epoch": epoch, "validation": scores})
        summary = "; ".join(f"{head} {_format_scores(found)}" for head, found in scores.items())
        return f"  epoch {epoch}, step {progress.steps:,}, {format_duration(self._seconds())}: validation {summary}"

    def _seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def _log(self, progress: Progress, values: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            line = {"step": progress.steps, "seconds": self._seconds(), **values}
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self._accelerator.log(_flatten(values), step=progress.steps)


def _format_scores(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None) or "has no rows"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of nested mappings by path, the form that trackers accept."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat

"""What is measured while training goes on: figures of steps, and the JSON-lines file and trackers they go to."""

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

from .loss import Losses

# Steps between two lines of metrics: often enough for a curve, rarely enough for a file that can be read.
_LOG_EVERY = 10
# Figures of a step before those of the heads: total loss, distillation, tokens, places of tokens, wish to stop.
_FIXED = 5


@dataclass
class StepFigures:
    """What a step came to.

    Attributes:
        learning_rate: The stage's learning rate in the step.
        values: (5 + heads,) total loss, distillation, tokens, tokens with padding, wishes to stop, each head's loss;
            sums over passes and processes.
    """

    learning_rate: float
    values: Tensor

    @classmethod
    def zero(cls, heads: int, learning_rate: float, device: torch.device) -> StepFigures:
        """Before the first pass."""
        return cls(learning_rate, torch.zeros(_FIXED + heads, device=device))

    def add(self, losses: Losses, lengths: Sequence[int]) -> None:
        """Adds a pass over texts of some lengths in tokens."""
        work = self.values.new_tensor([sum(lengths), max(lengths) * len(lengths), 0.0])
        self.values += torch.cat([losses.total[None], losses.distillation[None], work, losses.heads]).detach()

    def ask_to_stop(self) -> None:
        """Notes that this process was asked to stop."""
        self.values[4] += 1

    @property
    def loss(self) -> float:
        """What is minimised."""
        return float(self.values[0])

    @property
    def stop(self) -> bool:
        """Whether any process was asked to stop."""
        return float(self.values[4]) > 0

    def to_json(self, heads: Sequence[str], distilled: bool) -> dict[str, Any]:
        """The figures as a line of metrics has them."""
        total, distillation, tokens, places, _, *losses = self.values.tolist()
        return {
            "loss": total,
            "losses": dict(zip(heads, losses, strict=True)),
            **({"distillation": distillation} if distilled else {}),
            "learning_rate": self.learning_rate,
            "tokens": int(tokens),
            "padding": round(1.0 - tokens / places, 4),
        }


class Metrics:
    """The lines of a run's metrics, in ``metrics.jsonl`` and for the trackers; only the main process writes.

    Args:
        folder: Folder of the run that is under way.
        heads: Names of the heads.
        accelerator: The processes, and the trackers.
    """

    def __init__(self, folder: Path, heads: Sequence[str], accelerator: Accelerator) -> None:
        self._path = folder / METRICS_NAME
        self._heads = tuple(heads)
        self._accelerator = accelerator
        self._began = time.monotonic()

    def begin(self, progress: Progress) -> None:
        """Goes on where the last checkpoint left off; lines of steps that will be taken again are cut off.

        Raises:
            ResumeError: The file lacks lines of steps that were taken.
        """
        self._began = time.monotonic() - progress.seconds
        if self._accelerator.is_main_process:
            self._path.touch()
            if self._path.stat().st_size < progress.metrics_bytes:
                raise ResumeError(self._path, "is shorter than at the last checkpoint; start again with --restart")
            with self._path.open("r+b") as stream:
                stream.truncate(progress.metrics_bytes)

    def note(self, progress: Progress) -> None:
        """Has a checkpoint know where the metrics stand."""
        progress.seconds = self._seconds()
        if self._accelerator.is_main_process:
            sync(self._path)
            progress.metrics_bytes = self._path.stat().st_size

    def log_step(self, stage: str, progress: Progress, figures: StepFigures, distilled: bool) -> None:
        """A line for every tenth step."""
        if progress.steps % _LOG_EVERY == 0:
            self._log(progress, {"stage": stage, **figures.to_json(self._heads, distilled)})

    def log_epoch(self, stage: str, progress: Progress, epoch: int, scores: Mapping[str, Any]) -> str:
        """A line for an epoch; returns one for the terminal."""
        self._log(progress, {"stage": stage, "epoch": epoch, "validation": scores})
        figures = "; ".join(f"{head} {_line(found)}" for head, found in scores.items())
        return f"  epoch {epoch}, step {progress.steps:,}, {self._seconds():.0f} s: validation {figures}"

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _log(self, progress: Progress, values: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            line = {"step": progress.steps, "seconds": self._seconds(), **values}
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self._accelerator.log(_flat(values), step=progress.steps)


def _line(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None) or "has no rows"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by path, as trackers take them."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat

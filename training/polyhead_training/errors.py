"""What can go wrong between a configuration file and a run directory.

Errors::

    TrainingError
    +-- ConfigError       the configuration does not fit itself, the data or the backbone; mend the file
    +-- DataError         labelled files have rows that cannot be read; mend the rows
    +-- BackboneError     the checkpoint cannot be used as a backbone; choose another
    |   +-- HubError      the hub did not hand a checkpoint or dataset over; try again, or use a folder
    +-- RunError          a directory is not a run, or must not be replaced by one
    |   +-- ResumeError   an unfinished run cannot be gone on with; start again, or train elsewhere
    +-- DivergenceError   the loss or its gradient is no longer a number; mend the rows or lower a learning rate
    +-- StorageError      the disk did not take what was written; make room and resume
    +-- StoppedError      a signal asked for the end; resume
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class TrainingError(Exception):
    """Base of everything that this room raises on purpose."""


class ConfigError(TrainingError):
    """A field of the configuration cannot be used.

    Attributes:
        path: The configuration file.
        field: Dotted name of the field, ``training.batch_size``; empty when the whole file is at fault.
        reason: What is wrong, and the mend.
    """

    def __init__(self, path: Path, field: str, reason: str) -> None:
        super().__init__(f"{path}: {field}: {reason}" if field else f"{path}: {reason}")
        self.path = path
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """One row that cannot be read.

    Attributes:
        path: The file.
        line: Line of the file, or row of a Parquet file, counted from 1; 0 when the whole file is at fault.
        reason: What is wrong, with the field and the value, and the mend.
    """

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}" if self.line else f"{self.path}: {self.reason}"


class DataError(TrainingError):
    """Labelled files have rows that cannot be read; none of them was dropped.

    Attributes:
        problems: The rows at fault, the first ones where there are many.
        found: Number of rows at fault.
    """

    def __init__(self, problems: Sequence[Problem], found: int | None = None) -> None:
        self.problems = tuple(problems)
        self.found = len(problems) if found is None else found
        more = [f"{self.found:,} rows are at fault; these are the first ones"] if self.found > len(problems) else []
        super().__init__("\n".join([*map(str, problems), *more]))


class BackboneError(TrainingError):
    """A checkpoint cannot be used as a backbone.

    Attributes:
        reference: The folder or hub id that was asked for.
        reason: What is wrong, and the mend.
    """

    def __init__(self, reference: str, reason: str) -> None:
        # A hub dataset says itself what it is.
        super().__init__(
            f"{reference}: {reason}" if reference.startswith("hub:") else f"backbone {reference}: {reason}"
        )
        self.reference = reference
        self.reason = reason


class HubError(BackboneError):
    """The hub did not hand the checkpoint over."""


class RunError(TrainingError):
    """A directory is not a run, or must not be replaced by one.

    Attributes:
        path: The directory or the file in it.
        reason: What is wrong, and the mend.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ResumeError(RunError):
    """An unfinished run cannot be gone on with, or stands in the way of a new one."""


class DivergenceError(TrainingError):
    """The loss or its gradient is no longer finite.

    Attributes:
        stage: Name of the stage.
        step: Step of the stage, counted from 1.
        rows: Where the rows stand that have no finite loss or gradient on their own, each with its text.
    """

    def __init__(self, stage: str, step: int, rows: Sequence[str]) -> None:
        reason = "the loss or its gradient is not finite; lower the stage's learning_rate"
        lines = [f"stage {stage!r}, step {step}: {reason}, and start again with --restart"]
        lines += ["rows of the step that are at fault on their own:", *(f"  {row}" for row in rows)] if rows else []
        super().__init__("\n".join(lines))
        self.stage = stage
        self.step = step
        self.rows = tuple(rows)


class StorageError(TrainingError):
    """The disk did not take what was written, mostly because it is full; what was written before is whole.

    Attributes:
        path: The file, or the folder where nobody says which file.
        reason: What is wrong, and the mend.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = (
            f"cannot be written: {said}. Make room or mend the disk, and go on from the last checkpoint with --resume"
        )
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StoppedError(TrainingError):
    """A signal asked for the end of training; everything up to it is in a checkpoint.

    Attributes:
        step: Steps that were taken.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step:,}; everything up to it is saved")
        self.step = step

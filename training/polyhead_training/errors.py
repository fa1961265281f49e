"""Errors of training, one class for each reaction that a user can have.

Errors::

    TrainingError
    +-- ConfigError       the configuration contradicts itself, the data or the backbone; edit the file
    +-- DataError         rows of the labelled files are invalid; correct the rows
    +-- BackboneError     the checkpoint cannot be used as a backbone; choose another
    |   +-- HubError      the hub did not deliver a checkpoint or dataset; retry, or use local files
    +-- RunError          a directory is not a run directory, or must not be overwritten
    |   +-- ResumeError   a run in progress cannot be resumed; restart it, or write to another directory
    +-- DivergenceError   the loss or its gradient is not finite; correct the rows or lower a learning rate
    +-- StorageError      a file could not be written; free disk space and resume
    +-- StoppedError      a signal stopped training; resume
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from polyhead_rows import Problem

# Other rows with the same fault that one line of an error names.
_MAX_LINES = 20


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its type when the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class TrainingError(Exception):
    """Base class of the errors that polyhead_training raises."""


class ConfigError(TrainingError):
    """Fields of the configuration are invalid.

    Attributes:
        path: The configuration file.
        line: Line of the file, counted from 1; 0 where the fault is not in a line of it.
        field: Dotted name of the first invalid field, ``training.batch_size``; empty when the error concerns the whole
            file.
        reason: The fault and how to correct it.
        others: The other faults of the file, an error each.
    """

    def __init__(
        self, path: Path, field: str, reason: str, *, line: int = 0, others: Sequence[ConfigError] = ()
    ) -> None:
        place = f"{path}:{line}" if line else str(path)
        first = f"{place}: {field}: {reason}" if field else f"{place}: {reason}"
        super().__init__("\n".join([first, *map(str, others)]))
        self.path = path
        self.line = line
        self.field = field
        self.reason = reason
        self.others = tuple(others)

    @classmethod
    def combine(cls, errors: Sequence[ConfigError]) -> ConfigError:
        """Combines the errors of one file into one that lists all of them."""
        first, *others = errors
        return cls(first.path, first.field, first.reason, line=first.line, others=others)


class DataError(TrainingError):
    """Rows of the labelled files are invalid. No row is ever dropped silently.

    Attributes:
        problems: The invalid rows; the first ones where there are many.
        found: Total number of invalid rows.
    """

    def __init__(self, problems: Sequence[Problem], found: int | None = None) -> None:
        self.problems = tuple(problems)
        self.found = len(problems) if found is None else found
        more = [f"{self.found:,} rows are invalid; the first {len(problems)} are listed"]
        super().__init__("\n".join([*_grouped(problems), *(more if self.found > len(problems) else [])]))


def _grouped(problems: Sequence[Problem]) -> Iterator[str]:
    """Yields a line for each fault of each file, with all of the rows that have it."""
    groups: dict[tuple[Path, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.path, problem.reason), []).append(problem)
    for first, *others in groups.values():
        lines = ", ".join(str(other.line) for other in others[:_MAX_LINES])
        more = f" and {len(others) - _MAX_LINES} more" if len(others) > _MAX_LINES else ""
        noun = "line" if len(others) == 1 else "lines"
        yield f"{first}{f' (also in {noun} {lines}{more})' if others else ''}"


class BackboneError(TrainingError):
    """A checkpoint cannot be used as a backbone.

    Attributes:
        reference: The folder or hub id that the configuration names.
        reason: The fault and how to correct it.
    """

    def __init__(self, reference: str, reason: str) -> None:
        # The name of a hub dataset already says what it is.
        super().__init__(
            f"{reference}: {reason}" if reference.startswith("hub:") else f"backbone {reference}: {reason}"
        )
        self.reference = reference
        self.reason = reason


class HubError(BackboneError):
    """The hub did not deliver a checkpoint or a dataset."""


class RunError(TrainingError):
    """A directory is not a run directory, or must not be overwritten by one.

    Attributes:
        path: The directory or the file in it.
        reason: The fault and how to correct it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ResumeError(RunError):
    """A run in progress cannot be resumed, or blocks a new run."""


class DivergenceError(TrainingError):
    """The loss or its gradient is not finite.

    Attributes:
        stage: Name of the stage.
        step: Step of the stage, counted from 1.
        rows: File, line and text of each row whose own loss or gradient is not finite.
    """

    def __init__(self, stage: str, step: int, rows: Sequence[str]) -> None:
        reason = "the loss or its gradient is not finite; lower the stage's learning_rate"
        lines = [f"stage {stage!r}, step {step}: {reason}, and start again with --restart"]
        lines += ["rows of this step that cause it on their own:", *(f"  {row}" for row in rows)] if rows else []
        super().__init__("\n".join(lines))
        self.stage = stage
        self.step = step
        self.rows = tuple(rows)


class StorageError(TrainingError):
    """A file could not be written, usually because the disk is full. Files written earlier are complete.

    Attributes:
        path: The file, or its folder where the error does not name a file.
        reason: The fault and how to correct it.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = f"cannot be written: {cause}. Free disk space, then continue from the last checkpoint with --resume"
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StoppedError(TrainingError):
    """A signal stopped training; the progress up to that step is in a checkpoint.

    Attributes:
        step: Number of completed steps of the run.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step:,}; all progress is saved")
        self.step = step

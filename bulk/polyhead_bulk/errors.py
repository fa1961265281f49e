"""Errors of a bulk job, one class for each reaction that a caller can have.

::

    BulkError
    +-- UsageError     the options, the columns or the model do not fit: correct the command
    +-- ResumeError    the output folder holds the parts of another job: use another folder
    +-- InputError     an input cannot be read: its part is missing, the others are made
    +-- RowError       a row has no answer, and the caller asked for an error instead of a null
    +-- OutputError    a part cannot be written: free space or correct permissions, then resume
    +-- EngineError    the model or the server failed: resume when it works again
"""

from __future__ import annotations

import errno
from pathlib import Path


class BulkError(Exception):
    """Base class of all errors of this package; the message is one line for the user."""


class UsageError(BulkError):
    """The options contradict each other, or do not fit the input or the model."""


class ResumeError(BulkError):
    """The output folder holds parts of another model, other options or other inputs."""


class InputError(BulkError):
    """An input cannot be read.

    Attributes:
        where: The file, and the row group or line where reading failed.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where


class RowError(BulkError):
    """A row has no answer.

    Attributes:
        row: Number of the row in its batch, counted from 0.
        reason: Why.
    """

    def __init__(self, where: str, row: int, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.row = row
        self.reason = reason


class OutputError(BulkError):
    """A part cannot be written."""


class EngineError(BulkError):
    """The model cannot be loaded, or failed on texts that it can compute."""


def output_error(error: OSError, output: Path) -> OutputError:
    """Returns the error of a part that cannot be written."""
    reason = error.strerror or str(error)
    hint = ": free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OutputError(
        f"{output}: {reason}{hint}; the parts before are complete, and the same command continues after them"
    )

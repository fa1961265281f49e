"""What a reader yields: rows and problems, each with its position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """An invalid row, or a fault of a whole file.

    Attributes:
        path: The file.
        line: Line of the file, or row of a Parquet file, counted from 1; 0 when the fault concerns the whole file.
        reason: The fault, with the field and the value, and how to correct it.
        is_final: Whether the reader cannot continue, so that nothing after this position was read.
    """

    path: Path
    line: int
    reason: str
    is_final: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}" if self.line else f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row with the values of the file, before validation.

    Attributes:
        path: The file.
        line: Line of the file on which the row begins, or row of a Parquet file, counted from 1.
        values: Value of each named field that the row has; empty cells of a CSV file are None.
        names: Names of all fields of the row, in the order of the file.
    """

    path: Path
    line: int
    values: dict[str, object]
    names: tuple[str, ...]

    def problem(self, reason: str) -> Problem:
        """Returns a ``Problem`` at this row's file and line."""
        return Problem(self.path, self.line, reason)

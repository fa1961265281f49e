"""Rows of CSV, JSON Lines and Parquet files: one reader for every tool, so that a row means the same in any format.

::

    .csv .jsonl (.gz) .parquet --read_rows(path, fields)--> RawRow (named field -> value) or Problem (FILE:LINE: reason)

Only the named fields are converted and kept. Memory is bounded: by row, by value and by compression ratio.
Parquet requires pyarrow; the other formats require the standard library alone.
"""

from .files import read_rows, read_stream
from .limits import MAX_EXPANSION, MAX_ROW_CHARACTERS, MAX_VALUE_CHARACTERS
from .types import Problem, RawRow

__all__ = [
    "MAX_EXPANSION",
    "MAX_ROW_CHARACTERS",
    "MAX_VALUE_CHARACTERS",
    "Problem",
    "RawRow",
    "read_rows",
    "read_stream",
]

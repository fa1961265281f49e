"""Opens the reader of an input by its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from polyhead_bulk.selection import Selection
from polyhead_bulk.sources import Source

from .arrow import ArrowReader
from .base import Reader
from .parquet import ParquetReader
from .rows import RowReader


def open_reader(
    source: Source,
    selection: Selection,
    part_rows: int,
    types: Mapping[str, pa.DataType],
    first: Sequence[pa.Field] = (),
) -> Reader:
    """Opens an input and reads what its fragments and the types of its columns require.

    Args:
        source: The input.
        selection: The columns.
        part_rows: Largest number of rows of a fragment.
        types: Types of kept columns of JSON Lines and CSV, where the reader must not decide.
        first: Fields of the first input, where there is one before.

    Raises:
        InputError: The input cannot be read.
        UsageError: A column is missing, or has a type that does not fit.
    """
    if source.format == "parquet":
        return ParquetReader(source, selection, part_rows)
    if source.format in ("arrow", "arrow-stream"):
        return ArrowReader(source, selection, part_rows)
    return RowReader(source, selection, part_rows, types, first)

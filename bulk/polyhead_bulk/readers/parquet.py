"""Reader of Parquet files: fragments are whole row groups, or slices of a row group that is larger than a part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from polyhead_bulk.errors import InputError
from polyhead_bulk.selection import Selection, find_column
from polyhead_bulk.sources import Source
from polyhead_bulk.texts import Texts, from_arrow

from .base import PIECE_ROWS, Piece, Want, failed, find_fields
from .partitions import with_partitions

# Decoded bytes of a batch, as far as the metadata tell.
_BATCH_BYTES = 4 * 2**20
# Buffered reading holds a page of each column; by default whole row groups are prefetched.
_STREAMED = {"pre_buffer": False, "buffer_size": 2**20}


@dataclass(frozen=True)
class _Fragment:
    """Rows ``begin`` to ``end`` of the row groups ``first`` to ``last``, counted from the beginning of ``first``."""

    first: int
    last: int
    begin: int
    end: int
    first_row: int


class _Cursor:
    """Reads consecutive rows.

    Attributes:
        group: Row group of the first row.
        position: Rows that were taken or skipped.
    """

    def __init__(self, group: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.group = group
        self.position = 0
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, limit: int) -> pa.RecordBatch | None:
        """Returns the next rows, at most ``limit``; None at the end."""
        batch = self._rest if self._rest is not None else next(self._batches, None)
        if batch is None:
            return None
        self._rest = batch.slice(limit) if batch.num_rows > limit else None
        self.position += min(batch.num_rows, limit)
        return batch.slice(0, limit)

    def skip(self, position: int) -> None:
        """Drops the rows before a position."""
        while self.position < position and self.take(position - self.position) is not None:
            pass


class ParquetReader:
    """Reads one Parquet file; see ``Reader``."""

    def __init__(self, source: Source, selection: Selection, part_rows: int) -> None:
        """Reads the metadata.

        Raises:
            InputError: The file is not a Parquet file, or its metadata are damaged.
            UsageError: A column is missing, or the texts are not strings.
        """
        self._source = source
        self._selection = selection
        try:
            with self._open() as file:
                self._metadata, schema = file.metadata, file.schema_arrow
        # Names of columns that are not UTF-8 are a ValueError.
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(source.name, f"is not a readable Parquet file: {_first_line(error)}") from error
        schema = with_partitions(schema, source)
        fields = find_fields(schema, selection)
        self.fields = [fields[name] for name in selection.kept(schema.names)]
        self.states_fields = True
        self._columns = [name for name in fields if name not in dict(source.partitions)]
        self._fragments = list(_divide(self._metadata, part_rows))
        self.rows: int | None = self._metadata.num_rows
        self.fragments: int | None = len(self._fragments)
        # The rest of a row group that is read in slices.
        self._cursor: _Cursor | None = None

    def pieces(self, want: Want) -> Iterator[Texts]:
        """See ``Reader``."""
        for number, fragment in enumerate(self._fragments):
            wanted = want(number)
            if wanted is None:
                return
            if wanted:
                yield from self._fragment(number, fragment)

    def _fragment(self, number: int, fragment: _Fragment) -> Iterator[Texts]:
        row, held = fragment.first_row, None
        try:
            for batch in self._batches(fragment):
                if held is not None:
                    yield held
                kept = {field.name: find_column(batch, field.name) for field in self.fields}
                name = self._selection.text
                held = from_arrow(find_column(batch, name), name, Piece(number, row, kept))
                row += batch.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            groups = (
                f"row group {fragment.first}"
                if fragment.first == fragment.last
                else f"row groups {fragment.first} to {fragment.last}"
            )
            failure = InputError(f"{self._source.name}, {groups}", f"is damaged: {_first_line(error)}")
            self._cursor = None
            yield failed(number, row, failure)
            return
        held = held or Texts([], payload=Piece(number, row, {}))
        held.payload.ends = True
        held.payload.is_last = number == len(self._fragments) - 1
        yield held

    def _batches(self, fragment: _Fragment) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a fragment; continues where the last fragment of the same row group ended."""
        cursor = self._cursor
        if cursor is None or cursor.group != fragment.first or cursor.position > fragment.begin:
            cursor = _Cursor(fragment.first, self._row_groups(fragment.first, fragment.last))
        self._cursor = cursor
        cursor.skip(fragment.begin)
        while cursor.position < fragment.end and (batch := cursor.take(fragment.end - cursor.position)) is not None:
            yield batch

    def _row_groups(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        with self._open() as file:
            for group in range(first, last + 1):
                metadata = self._metadata.row_group(group)
                row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
                size = max(1, min(PIECE_ROWS, _BATCH_BYTES // row_bytes))
                options = {"row_groups": [group], "columns": self._columns, "use_threads": False}
                for batch in file.iter_batches(batch_size=size, **options):
                    yield with_partitions(batch, self._source)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._source.filesystem.open_input_file(self._source.path), **_STREAMED)


def _divide(metadata: pq.FileMetaData, part_rows: int) -> Iterator[_Fragment]:
    """Divides a file: several small row groups become one fragment, a large one several."""
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if not sizes:
        yield _Fragment(0, -1, 0, 0, 0)
    first = row = rows = 0
    for number, size in enumerate(sizes):
        if rows and rows + size > part_rows:
            yield _Fragment(first, number - 1, 0, rows, row)
            row, rows = row + rows, 0
        if not rows:
            first = number
        rows += size
        if rows > part_rows or number == len(sizes) - 1:
            for begin in range(0, max(rows, 1), part_rows):
                end = min(rows, begin + part_rows)
                yield _Fragment(first, number, begin, end, row + begin)
            row, rows = row + rows, 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

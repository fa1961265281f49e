"""Reader of Arrow IPC files and streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from polyhead_bulk.errors import InputError
from polyhead_bulk.selection import Selection, find_column
from polyhead_bulk.sources import Source
from polyhead_bulk.texts import Texts, from_arrow

from .base import PIECE_ROWS, Want, find_fields, fragments_of
from .partitions import with_partitions


class ArrowReader:
    """Reads one Arrow IPC file or stream from its beginning; see ``Reader``."""

    def __init__(self, source: Source, selection: Selection, part_rows: int) -> None:
        """Reads the schema.

        Raises:
            InputError: The input is not in the Arrow IPC format.
            UsageError: A column is missing, or the texts are not strings.
        """
        self._source = source
        self._selection = selection
        self._part_rows = part_rows
        try:
            self._batches = self._open()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(source.name, f"is not readable as {source.format}: {error}") from error
        schema = with_partitions(self._schema, source)
        fields = find_fields(schema, selection)
        self.fields = [fields[name] for name in selection.kept(schema.names)]
        self.states_fields = True
        self.rows: int | None = None
        self.fragments: int | None = None

    def pieces(self, want: Want) -> Iterator[Texts]:
        """See ``Reader``."""
        yield from fragments_of(self._groups(), self._part_rows, want)

    def _open(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        file: Any
        if source.format == "arrow-stream":
            file = sys.stdin.buffer if source.is_stdin else source.filesystem.open_input_stream(source.path)
            stream = pa.ipc.open_stream(file)
            self._schema = stream.schema
            return iter(stream)
        file = pa.memory_map(source.path) if source.is_local else source.filesystem.open_input_file(source.path)
        reader = pa.ipc.open_file(file)
        self._schema = reader.schema
        return (reader.get_batch(number) for number in range(reader.num_record_batches))

    def _groups(self) -> Iterator[tuple[Texts, dict[str, pa.Array]]]:
        row = 0
        try:
            for whole in self._batches:
                batch = with_partitions(whole, self._source)
                for begin in range(0, batch.num_rows, PIECE_ROWS):
                    part = batch.slice(begin, PIECE_ROWS)
                    kept = {field.name: find_column(part, field.name) for field in self.fields}
                    yield from_arrow(find_column(part, self._selection.text), self._selection.text), kept
                    row += part.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(self._source.name, f"is damaged after row {row:,}: {error}") from error

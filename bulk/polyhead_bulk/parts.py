"""Parts of the output: one file for each fragment of the input, beside a record of what it holds.

::

    OUT/part-00002-00000.parquet          fragment 0 of input 2
    OUT/_parts/part-00002-00000.json      its record: rows, size, SHA-256
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UsageError
from .files import AtomicFile, write_file
from .selection import size_of

Format = Literal["parquet", "jsonl"]
RECORDS = "_parts"
# Errors of values that a format cannot hold, such as a time beyond its range. A failed write is an OSError.
UNWRITABLE = (pa.ArrowException, ArithmeticError, TypeError, ValueError)
_RECORD = re.compile(r"part-(\d{5,})-(\d{5,})\.json")
# Fast, and smaller than no compression by 8 % for embeddings; dictionaries only make these larger.
_COMPRESSION = {"compression": "zstd", "compression_level": 1}


@dataclass(frozen=True)
class PartRecord:
    """What a part holds.

    Attributes:
        name: File name.
        source: Number of the input.
        fragment: Number of the fragment in the input.
        first_row: Row of the input that is the part's first.
        rows: Number of rows.
        errors: Rows without an answer.
        size: Bytes.
        sha256: Digest of the file.
        is_last: Whether the fragment is the last one of its input.
    """

    name: str
    source: int
    fragment: int
    first_row: int
    rows: int
    errors: int
    size: int
    sha256: str
    is_last: bool

    @property
    def key(self) -> tuple[int, int]:
        """Input and fragment."""
        return self.source, self.fragment


def part_name(source: int, fragment: int, output_format: Format) -> str:
    """Returns the file name of a part. Sorted by name, the parts are in the order of the input."""
    return f"part-{source:05d}-{fragment:05d}.{output_format}"


def read_records(output: Path, output_format: Format, source: int | None = None) -> dict[tuple[int, int], PartRecord]:
    """Returns the records of the complete parts in a folder: those whose file exists with the recorded size.

    Args:
        output: The folder.
        output_format: Format of the parts.
        source: Number of the input whose parts to return; None for all.
    """
    found = {}
    names = "part-*.json" if source is None else f"part-{source:05d}-*.json"
    for path in sorted((output / RECORDS).glob(names)):
        match = _RECORD.fullmatch(path.name)
        if not match:
            continue
        try:
            record = PartRecord(**json.loads(path.read_bytes()))
            file = output / part_name(*record.key, output_format)
            if file.stat().st_size == record.size:
                found[record.key] = record
        except (OSError, TypeError, ValueError):  # a part without a valid record is made again
            continue
    return found


def check_types(fields: Iterable[pa.Field], output_format: Format) -> None:
    """Rejects kept columns of types that the output format does not have.

    Raises:
        UsageError: Names the column.
    """
    for field in fields if output_format == "parquet" else ():
        try:
            pq.write_table(pa.schema([pa.field(field.name, field.type)]).empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise UsageError(
                f"column {field.name!r} has type {field.type}, which Parquet does not have: use --output-format jsonl, "
                "or leave it out of --keep"
            ) from error


class _Encoder(Protocol):
    def write(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


class PartWriter:
    """Writes one part.

    Attributes:
        first_row: Row of the input that is the part's first.
    """

    def __init__(
        self,
        output: Path,
        schema: pa.Schema,
        output_format: Format,
        *,
        source: int,
        fragment: int,
        first_row: int,
    ) -> None:
        """Creates the temporary file.

        Raises:
            OSError: It cannot be created.
        """
        self.first_row = first_row
        self._output = output
        self._record = PartRecord(
            part_name(source, fragment, output_format), source, fragment, first_row, 0, 0, 0, "", is_last=False
        )
        self._schema = schema
        self._file = AtomicFile(output / self._record.name)
        encoder = _ParquetEncoder if output_format == "parquet" else _JsonEncoder
        try:
            self._encoder: _Encoder = encoder(self._file, schema)
        except BaseException:
            self._file.discard()
            raise

    def write(self, columns: Mapping[str, pa.Array], errors: int) -> None:
        """Appends rows.

        Raises:
            OSError: They cannot be written.
        """
        table = pa.Table.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)
        self._encoder.write(table)
        rows = self._record.rows + table.num_rows
        self._record = dataclasses.replace(self._record, rows=rows, errors=self._record.errors + errors)

    def commit(self, *, is_last: bool) -> PartRecord:
        """Completes the part: file first, record second, so that a record proves its file.

        Raises:
            OSError: It cannot be written.
        """
        self._encoder.close()
        record = dataclasses.replace(self._record, size=self._file.size, sha256=self._file.sha256, is_last=is_last)
        # A record of an earlier file of this name must not describe the new one.
        path = self._output / RECORDS / f"{Path(record.name).stem}.json"
        path.unlink(missing_ok=True)
        self._file.commit()
        write_file(path, json.dumps(dataclasses.asdict(record)).encode())
        return record

    def discard(self) -> None:
        """Removes the part unless it is complete."""
        if not self._file.closed:
            self._encoder.abandon()
        self._file.discard()


class _ParquetEncoder:
    """Encodes tables as the row groups of a Parquet file."""

    # Rows of a row group: 25 MB of embeddings with 384 dimensions.
    _ROWS = 16_384
    # A row group with large kept columns has fewer.
    _BYTES = 128 * 2**20

    def __init__(self, file: AtomicFile, schema: pa.Schema) -> None:
        dictionary = [field.name for field in schema if _is_string(field.type)]
        self._writer = pq.ParquetWriter(file, schema, use_dictionary=dictionary or False, **_COMPRESSION)
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._rows += table.num_rows
        self._bytes += sum(map(size_of, table.columns))
        if self._rows >= self._ROWS or self._bytes >= self._BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Otherwise it would write the metadata when it is deleted.
        self._writer.is_open = False

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._tables), row_group_size=self._ROWS)
        self._tables, self._rows, self._bytes = [], 0, 0


class _JsonEncoder:
    """Encodes tables as JSON Lines."""

    def __init__(self, file: AtomicFile, schema: pa.Schema) -> None:
        self._file = file
        self._names = schema.names

    def write(self, table: pa.Table) -> None:
        columns = [_json_values(column.combine_chunks()) for column in table.columns]
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        lines = (
            orjson.dumps(dict(zip(self._names, row, strict=True)), default=_json_value, option=options)
            for row in zip(*columns, strict=True)
        )
        self._file.write(b"".join(lines))

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def _json_values(column: pa.Array) -> list[Any]:
    """Returns the values of a column for orjson: lists of numbers as NumPy arrays, without an object per number."""
    kind = column.type
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return list(column.to_pylist())
    # NumPy has no integers that are null.
    return [
        scalar.values.to_numpy(zero_copy_only=False)
        if scalar.is_valid and not scalar.values.null_count
        else scalar.as_py()
        for scalar in column
    ]


def _json_value(value: object) -> str:
    """Returns a value of a type that JSON does not have: bytes in base64, anything else as Python prints it."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

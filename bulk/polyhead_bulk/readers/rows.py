"""Reader of JSON Lines and CSV: a line that is not a valid row gets an error in its place."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
from polyhead_rows import Problem, RawRow, read_rows, read_stream

from polyhead_bulk.errors import InputError, UsageError
from polyhead_bulk.selection import ALL, Selection, find_value, missing_column, tops
from polyhead_bulk.sources import Source
from polyhead_bulk.texts import Texts, from_values

from .base import PIECE_CHARACTERS, PIECE_ROWS, Want, fragments_of


@dataclass
class _Group:
    """Consecutive rows: a value of each column, or the reason why the row is invalid."""

    rows: list[RawRow | None] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    size: int = 0

    def add(self, row: RawRow | Problem) -> None:
        """Adds a row."""
        if isinstance(row, Problem):
            self.errors[len(self.rows)] = f"line {row.line}: {row.reason}"
        self.rows.append(row if isinstance(row, RawRow) else None)
        self.size += _size(row.values) if isinstance(row, RawRow) else 0

    @property
    def is_full(self) -> bool:
        """Whether the next row belongs to another group."""
        return len(self.rows) >= PIECE_ROWS or self.size >= PIECE_CHARACTERS


class RowReader:
    """Reads one file of JSON Lines or CSV from its beginning; see ``Reader``.

    The first rows decide the types of kept JSON fields; one that is always null or {} is a string, unless the first
    input has objects or lists there. CSV columns are strings.
    """

    def __init__(
        self,
        source: Source,
        selection: Selection,
        part_rows: int,
        types: Mapping[str, pa.DataType],
        first: Sequence[pa.Field] = (),
    ) -> None:
        """Reads the first rows.

        Args:
            source: The input.
            selection: The columns.
            part_rows: Rows of a fragment.
            types: Types of kept columns, where the first rows must not decide.
            first: Fields of the first input, where there is one before.

        Raises:
            InputError: The input cannot be read.
            UsageError: No row has a column that is required, or a kept field has values of several types.
        """
        self._source = source
        self._selection = selection
        self._part_rows = part_rows
        self._groups = self._read()
        self._first = next(self._groups, _Group())
        self._nested = {one.name: one.type for one in first if pa.types.is_nested(one.type)}
        partitions = dict(source.partitions)
        rows = [row for row in self._first.rows if row is not None]
        names = list(dict.fromkeys([*(name for row in rows for name in row.names), *partitions]))
        # A column with a named type exists even if no row has it yet.
        declared = [name for name in types if not tops([name]) & {*names}]
        for name in selection.required():
            if rows and not tops([name]) & {*names} and (name == selection.text or name not in declared):
                raise missing_column(name, names)
        self._names = frozenset([*names, *declared])
        self.fields = [
            pa.field(name, types.get(name) or self._type(name, rows, partitions))
            for name in selection.kept([*names, *declared])
        ]
        self.states_fields = bool(rows)
        self.rows: int | None = None
        self.fragments: int | None = None

    def pieces(self, want: Want) -> Iterator[Texts]:
        """See ``Reader``."""
        yield from fragments_of(self._texts(), self._part_rows, want)

    def _texts(self) -> Iterator[tuple[Texts, dict[str, pa.Array]]]:
        group: _Group | None = self._first
        while group is not None and group.rows:
            values = [None if row is None else find_value(row.values, self._selection.text) for row in group.rows]
            texts = from_values(values)
            texts.errors |= {
                number: f"line {row.line}: no field {self._selection.text!r}; the fields are: {', '.join(row.names)}"
                for number, row in enumerate(group.rows)
                if row is not None and not tops([self._selection.text]) & {*row.names}
            }
            texts.errors |= group.errors
            if ALL in self._selection.keep:
                self._check_names(group.rows)
            yield texts, {one.name: self._column(one, group.rows) for one in self.fields}
            group = next(self._groups, None)

    def _read(self) -> Iterator[_Group]:
        """Yields groups of rows.

        Raises:
            InputError: The rest of the input cannot be read.
        """
        group = _Group()
        for row in self._rows():
            if isinstance(row, Problem) and row.is_final:
                if group.rows:
                    yield group
                raise InputError(self._source.name, f"line {row.line}: {row.reason}" if row.line else row.reason)
            group.add(row)
            if group.is_full:
                yield group
                group = _Group()
        if group.rows:
            yield group

    def _rows(self) -> Iterator[RawRow | Problem]:
        source, path = self._source, Path(self._source.name)
        fields = None if ALL in self._selection.keep else tops(self._selection.required())
        if source.is_local and source.path.lower().removesuffix(".gz").endswith(f".{source.format}"):
            yield from read_rows(Path(source.path), fields)
            return
        try:
            stream = self._open()
            yield from read_stream(stream, source.format, path, fields)
        except (OSError, ValueError, pa.ArrowException) as error:  # a name that is not UTF-8 is a ValueError
            raise InputError(source.name, f"cannot be read: {error}") from error

    def _open(self) -> IO[bytes]:
        source = self._source
        if source.is_stdin:
            return sys.stdin.buffer
        stream = source.filesystem.open_input_stream(source.path, compression=source.compression)
        return cast(IO[bytes], io.BufferedReader(stream))

    def _type(self, name: str, rows: list[RawRow], partitions: Mapping[str, str | None]) -> pa.DataType:
        if self._source.format == "csv" or name in partitions:
            return pa.string()
        values = [find_value(row.values, name) for row in rows]
        try:
            kind = pa.array(values).type
        except (pa.ArrowException, OverflowError) as error:
            raise UsageError(
                f"{self._source.name}: field {name!r} has values of several types ({error}): convert them to one type, "
                f"name it with --column-type {name}=string, or leave it out of --keep"
            ) from error
        return self._nested.get(name, pa.string()) if pa.types.is_null(kind) or _has_empty_struct(kind) else kind

    def _check_names(self, rows: list[RawRow | None]) -> None:
        """Rejects a field that would be lost, as the first rows do not have it.

        Raises:
            InputError: Names line and field.
        """
        for row in rows:
            if row is not None and (others := [name for name in row.names if name not in self._names]):
                raise InputError(
                    f"{self._source.name}, line {row.line}",
                    f"field {others[0]!r} is not in the first rows, which decide what --keep '*' copies: name it with "
                    f"--column-type {others[0]}=string, or name each column with --keep",
                )

    def _column(self, wanted: pa.Field, rows: list[RawRow | None]) -> pa.Array:
        partitions = dict(self._source.partitions)
        if wanted.name in partitions:
            return pa.array([partitions[wanted.name]] * len(rows), wanted.type)
        values = [None if row is None else find_value(row.values, wanted.name) for row in rows]
        if pa.types.is_string(wanted.type):
            values = [value if value is None or isinstance(value, str) else _to_text(value) for value in values]
        try:
            return _array(values, wanted.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            line = next(row.line for row in rows if row is not None and not _fits(row, wanted))
            raise InputError(
                f"{self._source.name}, line {line}",
                f"field {wanted.name!r} is not a value of type {wanted.type}, which the rows before have: convert it, "
                f"name a type for all rows with --column-type {wanted.name}=string, or leave it out of --keep",
            ) from None


def _size(value: object) -> int:
    """Returns about how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    """Converts values to a type.

    Raises:
        ValueError: A value is not of the type, or an object has keys that the type does not have.
    """
    if pa.types.is_nested(kind) and any(_has_other_keys(value, kind) for value in values):
        raise ValueError
    return pa.array(values, kind)


def _has_other_keys(value: object, kind: pa.DataType) -> bool:
    """Returns whether a value contains an object with keys that its type does not have; Arrow would drop them."""
    if isinstance(value, list) and pa.types.is_list(kind):
        return pa.types.is_nested(kind.value_type) and any(_has_other_keys(one, kind.value_type) for one in value)
    if not isinstance(value, dict) or not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    return any(key not in types or _has_other_keys(one, types[key]) for key, one in value.items())


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Returns whether a type is that of objects without keys, or contains it; Parquet does not have it."""
    if pa.types.is_struct(kind):
        return not kind.num_fields or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _fits(row: RawRow, wanted: pa.Field) -> bool:
    try:
        _array([find_value(row.values, wanted.name)], wanted.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return True


def _to_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

"""Reader of JSON Lines and CSV: a line that is not a valid row gets an error in its place."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias, cast

import pyarrow as pa
from polyhead_rows import Problem, RawRow, read_rows, read_stream

from polyhead_bulk.errors import InputError, UsageError
from polyhead_bulk.selection import ALL, Selection, find_value, is_list, missing_column, tops
from polyhead_bulk.sources import Source
from polyhead_bulk.texts import Texts, from_values

from .base import PIECE_CHARACTERS, PIECE_ROWS, Want, fragments_of

# Characters of the first rows, which decide names and types: PIECE_ROWS of them wherever these fit into memory.
_FIRST_CHARACTERS = 64 * 2**20


@dataclass
class _Group:
    """Consecutive rows: a value of each column, or the reason why the row is invalid."""

    rows: list[RawRow | None] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    size: int = 0

    def add(self, row: RawRow | Problem) -> None:
        """Adds a row."""
        if isinstance(row, RawRow):
            self._append(row, None)
        else:
            self._append(None, f"line {row.line}: {row.reason}")

    def is_full(self, characters: int) -> bool:
        """Returns whether the next row belongs to another group."""
        return len(self.rows) >= PIECE_ROWS or self.size >= characters

    def divided(self) -> Iterator[_Group]:
        """Yields the rows in groups of at most about ``PIECE_CHARACTERS``."""
        group = _Group()
        for number, row in enumerate(self.rows):
            group._append(row, self.errors.get(number))
            if group.is_full(PIECE_CHARACTERS):
                yield group
                group = _Group()
        if group.rows:
            yield group

    def _append(self, row: RawRow | None, error: str | None) -> None:
        if error is not None:
            self.errors[len(self.rows)] = error
        self.rows.append(row)
        self.size += _size(row.values) if row is not None else 0


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
        groups = itertools.chain(self._first.divided(), self._groups)
        # Its rows need not be held until the end.
        self._first = _Group()
        for group in groups:
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

    def _read(self) -> Iterator[_Group]:
        """Yields groups of rows.

        Raises:
            InputError: The rest of the input cannot be read.
        """
        group, characters = _Group(), _FIRST_CHARACTERS
        for row in self._rows():
            if isinstance(row, Problem) and row.is_final:
                if group.rows:
                    yield group
                raise InputError(self._source.name, f"line {row.line}: {row.reason}" if row.line else row.reason)
            group.add(row)
            if group.is_full(characters):
                yield group
                group, characters = _Group(), PIECE_CHARACTERS
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
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):  # a long one has numbers, as a rule
        return len(value) + sum(_size(one) for one in value if isinstance(one, (str, list, dict)))
    return 1


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    """Converts values to a type.

    Raises:
        ValueError: A value is not of the type, or an object has keys that the type does not have.
    """
    keys = _keys(kind)
    if keys is not None and any(_has_other_keys(value, keys) for value in values):
        raise ValueError
    return pa.array(values, kind)


# Names of the keys of an object, or in a list those of the objects in a list; None for a value without objects.
_Keys: TypeAlias = "dict[str, _Keys] | list[_Keys] | None"


def _keys(kind: pa.DataType) -> _Keys:
    """Returns the keys that the values of a type may have."""
    if pa.types.is_struct(kind):
        return {field.name: _keys(field.type) for field in kind}
    if is_list(kind) and (keys := _keys(kind.value_type)) is not None:
        return [keys]
    return None


def _has_other_keys(value: object, keys: _Keys) -> bool:
    """Returns whether a value contains an object with other keys; Arrow would drop them."""
    if isinstance(keys, dict):
        return isinstance(value, dict) and any(
            key not in keys or _has_other_keys(one, keys[key]) for key, one in value.items()
        )
    return keys is not None and isinstance(value, list) and any(_has_other_keys(one, keys[0]) for one in value)


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

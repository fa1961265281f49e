"""Columns of the input that a job reads: the texts, the ids, and those that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .errors import InputError, UsageError

ALL = "*"


@dataclass(frozen=True)
class Selection:
    """Columns by their names; ``review.body`` is the field ``body`` of the column ``review``.

    Attributes:
        text: Column of the texts.
        id: Column of the ids; None without ids.
        keep: Further columns to copy into the output; ``*`` for all.
    """

    text: str
    id: str | None = None
    keep: tuple[str, ...] = ()

    def kept(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the columns to copy, the ids first, given the names of all columns."""
        wanted = [name for one in self.keep for name in (names if one == ALL else [one])]
        return tuple(dict.fromkeys([*([self.id] if self.id else []), *wanted]))

    def required(self) -> tuple[str, ...]:
        """Returns the columns that the options name."""
        return tuple(dict.fromkeys([self.text, *([self.id] if self.id else []), *(n for n in self.keep if n != ALL)]))


def check_names(kept: Iterable[str], added: Sequence[str]) -> None:
    """Rejects columns of the input that have the name of a column that is added.

    Raises:
        UsageError: Names the column.
    """
    if taken := [name for name in kept if name in added]:
        raise UsageError(
            f"the kept column {taken[0]!r} has the name of a column that is added: rename it in the input, or leave it "
            f"out; the added columns are: {', '.join(added)}"
        )


def find_field(schema: pa.Schema, name: str) -> Any:
    """Returns the field of a column, or of a field of a struct; None if there is none, or more than one."""
    if schema.get_field_index(name) >= 0:
        return schema.field(name)
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        top = ".".join(parts[:split])
        if schema.get_field_index(top) < 0:
            continue
        field = schema.field(top)
        for part in parts[split:]:
            if not pa.types.is_struct(field.type) or field.type.get_field_index(part) < 0:
                return None
            field = field.type.field(part)
        return pa.field(name, field.type)
    return None


def find_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a column, or a field of a struct column, null where the struct is null."""
    if batch.schema.get_field_index(name) >= 0:
        return batch.column(name)
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        top = ".".join(parts[:split])
        if batch.schema.get_field_index(top) >= 0:
            return pc.struct_field(batch.column(top), parts[split:])
    raise KeyError(name)


def find_value(values: Mapping[str, object], name: str) -> object:
    """Returns a value of a JSON object, or of an object in it; None where there is none."""
    if name in values:
        return values[name]
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        value: object = values.get(".".join(parts[:split]))
        for part in parts[split:]:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def tops(names: Iterable[str]) -> frozenset[str]:
    """Returns every name that a column may have which contains one of the named fields."""
    return frozenset(
        ".".join(name.split(".")[:split]) for name in names for split in range(1, len(name.split(".")) + 1)
    )


def missing_column(name: str, names: Sequence[str]) -> UsageError:
    """Returns the error for a column that an input does not have."""
    return UsageError(f"no column {name!r}; the columns are: {', '.join(names) or 'none'}")


def cast_columns(
    columns: Mapping[str, pa.Array], fields: Sequence[pa.Field], name: str, rows: int, *, is_all: bool = False
) -> dict[str, pa.Array]:
    """Converts the kept columns of an input to the types of the first input.

    Args:
        columns: The columns; none for rows without a field.
        fields: The fields of the first input.
        name: The input.
        rows: Number of rows.
        is_all: Whether every column is to be kept, so that one which the first input does not have is an error.

    Raises:
        InputError: A column is missing or would be lost, or has values that the type does not have.
    """
    if not columns:
        return {field.name: pa.nulls(rows, field.type) for field in fields}
    if is_all and (others := columns.keys() - {field.name for field in fields}):
        raise InputError(
            name,
            f"has a column {min(others)!r}, which the first input does not have: name each column with --keep in place "
            f"of '*', or, for JSON Lines and CSV, this one with --column-type {min(others)}=string",
        )
    found = {}
    for field in fields:
        if field.name not in columns:
            raise InputError(name, f"has no column {field.name!r}")
        column = columns[field.name]
        problem = f"column {field.name!r} has type {column.type}; the first input has {field.type}"
        if _has_other_fields(column.type, field.type):
            hint = f"leave it out of --keep, or keep JSON as text with --column-type {field.name}=string"
            raise InputError(name, f"{problem}, without some of its fields: {hint}")
        try:
            found[field.name] = column if column.type == field.type else column.cast(field.type)
        except pa.ArrowException as error:
            raise InputError(name, f"{problem}: {error}") from error
    return found


def size_of(column: pa.Array | pa.ChunkedArray) -> int:
    """Returns about how many bytes the rows of a column have; ``nbytes`` counts whole buffers of some types.

    A dictionary is not counted, as pieces share it.
    """
    kind = column.type
    if isinstance(column, pa.ChunkedArray):
        return sum(map(size_of, column.chunks))
    if pa.types.is_dictionary(kind):
        return int(column.indices.nbytes)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return int(column.cast(pa.large_binary()).nbytes)
    if pa.types.is_struct(kind):
        return sum(map(size_of, column.flatten()))
    if is_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return 8 * len(column) + size_of(column.flatten())
    return int(column.nbytes)


def _has_other_fields(kind: pa.DataType, target: pa.DataType) -> bool:
    """Returns whether a type contains a struct with fields that the target does not have; a cast would drop them."""
    if pa.types.is_struct(kind) and pa.types.is_struct(target):
        types = {field.name: field.type for field in target}
        return any(field.name not in types or _has_other_fields(field.type, types[field.name]) for field in kind)
    if is_list(kind) and is_list(target):
        return _has_other_fields(kind.value_type, target.value_type)
    return False


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a type is that of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))

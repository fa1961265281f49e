"""Reader of Parquet files: only the named columns are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .limits import EXPANSION_ALLOWANCE, MAX_EXPANSION, MAX_VALUE_CHARACTERS
from .types import Problem, RawRow
from .values import Unreadable, checked, duplicate_names, too_long

# Rows that are in memory at once.
_BATCH_ROWS = 1024
# Bytes of UTF-8 that a value within the limit has at most.
_MAX_VALUE_BYTES = 4 * MAX_VALUE_CHARACTERS


def read_parquet(path: Path, fields: frozenset[str] | None) -> Iterator[RawRow | Problem]:
    """Yields each row of a Parquet file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or in a variant of the format that pyarrow does not support.
    """
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        yield Problem(path, 0, "requires pyarrow: pip install 'polyhead[training]'", is_final=True)
        return
    size = path.stat().st_size
    row = 0
    try:
        # Buffered reading holds a page of each column; by default whole row groups are prefetched.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            names = tuple(file.schema_arrow.names)
            if repeated := duplicate_names(names, fields):
                reason = f"has more than one column {repeated[0]!r} among its columns {', '.join(map(repr, names))}"
                yield Problem(path, 0, f"{reason}: remove or rename one", is_final=True)
                return
            columns = [name for name in names if fields is None or name in fields]
            strings = [name for name in columns if _is_string(file.schema_arrow.field(name).type)]
            metadata = file.metadata
        # Dictionaries keep repeated strings once: a small file may repeat a long string a million times.
        options = {"read_dictionary": strings, "metadata": metadata, "pre_buffer": False, "buffer_size": 2**20}
        with pq.ParquetFile(path, **options) as file:
            held = 0
            for batch in _batches(file, columns):
                found = {name: _values(batch.column(batch.schema.get_field_index(name))) for name in columns}
                for index in range(batch.num_rows):
                    row += 1
                    values = {name: column[index] for name, column in found.items()}
                    held += sum(len(value) for value in values.values() if isinstance(value, str))
                    if held > max(EXPANSION_ALLOWANCE, MAX_EXPANSION * size):
                        reason = f"its values are more than {MAX_EXPANSION} times as large as the file"
                        yield Problem(path, row, f"{reason}; remove repeated rows", is_final=True)
                        return
                    yield checked(RawRow(path, row, values, names))
    except pyarrow.ArrowException as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"after row {row:,}" if row else "from its first row"
        yield Problem(path, 0, f"cannot be read {where}: {first}; write the file again", is_final=True)


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    """Yields record batches of some columns. Without columns, the batches have rows alone."""
    return iter(file.iter_batches(batch_size=_BATCH_ROWS, columns=columns))


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))


def _values(column: Any) -> list[object]:
    """Converts a column into Python values. A value that cannot be converted becomes ``Unreadable``."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        distinct = _values(column.dictionary)
        return [None if index is None else distinct[index] for index in column.indices.to_pylist()]
    if types.is_float16(kind) or types.is_float32(kind):
        # The shortest decimal of a number: 0.1, not the 0.10000000149011612 of the equal float64.
        return [None if value is None else float(str(value)) for value in column.to_numpy(zero_copy_only=False)]
    if _is_string(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return [_convert(value) for value in column]
    try:
        return list(column.to_pylist())
    except (ArithmeticError, ImportError, ValueError, pyarrow.ArrowException):
        return [_convert(value) for value in column]


def _convert(scalar: Any) -> object:
    import pyarrow

    try:
        if scalar.is_valid and hasattr(scalar, "as_buffer") and scalar.as_buffer().size > _MAX_VALUE_BYTES:
            return Unreadable(too_long(f"{scalar.as_buffer().size:,} bytes"))
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable("is not UTF-8: write the column again as UTF-8 strings")
    except (ArithmeticError, ImportError, ValueError, pyarrow.ArrowException) as error:
        return Unreadable(f"a value of type {scalar.type} cannot be read ({error}): cast the column to strings")

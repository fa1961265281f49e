"""Reader of Parquet files: only the named columns are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .limits import EXPANSION_ALLOWANCE, MAX_EXPANSION, MAX_VALUE_CHARACTERS
from .types import Problem, RawRow
from .values import Unreadable, checked, duplicate_names, too_long

# Rows that are decoded at once, and the bytes that they may have.
_BATCH_ROWS = 4096
_BATCH_BYTES = 32 * 2**20
# Buffered reading holds a page of each column; by default whole row groups are prefetched.
_STREAMED = {"pre_buffer": False, "buffer_size": 2**20}
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
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names, metadata = tuple(file.schema_arrow.names), file.metadata
            if repeated := duplicate_names(names, fields):
                reason = f"has more than one column {repeated[0]!r} among its {len(names):,} columns"
                yield Problem(path, 0, f"{reason}: remove or rename one", is_final=True)
                return
            columns = [name for name in names if fields is None or name in fields]
            strings = [name for name in columns if _is_string(file.schema_arrow.field(name).type)]
        limit = max(EXPANSION_ALLOWANCE, MAX_EXPANSION * path.stat().st_size)
        # Of all columns: if the metadata of one is damaged, pyarrow ends the process when it is asked for.
        if sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)) > limit:
            yield _expansion(path, 0, "remove repeated rows and columns that are not used")
            return
        for batch in _batches(path, metadata, columns, strings):
            found = {name: _values(batch.column(batch.schema.get_field_index(name))) for name in columns}
            for index in range(batch.num_rows):
                row += 1
                values = {name: column[index] for name, column in found.items()}
                limit -= sum(len(value) for value in values.values() if isinstance(value, str))
                if limit < 0:
                    yield _expansion(path, row, "remove repeated rows")
                    return
                yield checked(RawRow(path, row, values, names))
    # Names of columns that are not UTF-8 are a ValueError.
    except (pyarrow.ArrowException, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"after row {row:,}" if row else "from its first row"
        yield Problem(path, 0, f"cannot be read {where}: {first}; write the file again", is_final=True)


def _expansion(path: Path, row: int, fix: str) -> Problem:
    reason = f"its values are more than {MAX_EXPANSION} times as large as the file"
    return Problem(path, row, f"{reason}; {fix}", is_final=True)


def _batches(path: Path, metadata: Any, columns: list[str], strings: list[str]) -> Iterator[Any]:
    """Yields record batches of the named columns, strings as dictionaries where the file's encoding allows it.

    A dictionary holds repeated strings once: a small file may repeat a long string a million times.
    """
    import pyarrow.parquet as pq

    with (
        pq.ParquetFile(path, metadata=metadata, read_dictionary=strings, **_STREAMED) as file,
        pq.ParquetFile(path, metadata=metadata, **_STREAMED) as plain,
    ):
        for group in range(metadata.num_row_groups):
            options = {"row_groups": [group], "columns": columns}
            done = 0
            try:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, **options):
                    done += batch.num_rows
                    yield batch
            except OSError as error:
                if "not yet implemented" not in str(error).lower():
                    raise
                # Incremental encodings: a value may be as long as all stored bytes together.
                stored = max(1, metadata.row_group(group).total_byte_size)
                rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // stored))
                for batch in plain.iter_batches(batch_size=rows, **options):
                    start = min(done, batch.num_rows)
                    done -= start
                    yield batch.slice(start)


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))


def _values(column: Any) -> list[object]:
    """Converts a column into Python values. A value that cannot be converted becomes ``Unreadable``."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        # A dictionary may belong to many batches, so only the values that occur in this one are converted.
        indices = column.indices.to_pylist()
        used = sorted(set(indices) - {None})
        distinct = dict(zip(used, _values(column.dictionary.take(pyarrow.array(used, "int64"))), strict=True))
        return [distinct.get(index) for index in indices]
    if types.is_float16(kind) or types.is_float32(kind):
        # The shortest decimal of a number: 0.1, not the 0.10000000149011612 of the equal float64.
        numbers = column.to_numpy(zero_copy_only=False)
        return [
            float(str(number)) if valid.as_py() else None
            for number, valid in zip(numbers, column.is_valid(), strict=True)
        ]
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

"""Readers of labelled files: raw rows, one at a time, each with its file and line.

::

    .jsonl .csv (.gz) .parquet, hub:... --read_rows--> RawRow (field -> value) or Problem --dataset.py--> Row
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow
import pyarrow.parquet

from polyhead_training.errors import DataError, Problem

# Rows of a Parquet file that are in memory at once.
_PARQUET_BATCH = 1024
# Prefix of the names of hub datasets.
HUB_PREFIX = "hub:"

# Path of a file, or the name of a hub dataset.
Source = Path


@dataclass(frozen=True)
class RawRow:
    """A row with the values of the file, before validation.

    Attributes:
        path: The file.
        line: Line of the file on which the row ends, or row of a Parquet file, counted from 1.
        values: Value of each field of the row; empty cells of a CSV file are None.
    """

    path: Path
    line: int
    values: dict[str, object]

    def problem(self, reason: str) -> Problem:
        """Returns a ``Problem`` at this row's file and line."""
        return Problem(self.path, self.line, reason)


def read_rows(path: Source) -> Iterator[RawRow | Problem]:
    """Reads a file row by row. An unreadable row is yielded as a ``Problem`` in its position.

    Args:
        path: A ``.jsonl``, ``.csv`` (either optionally ``.gz``) or ``.parquet`` file, or ``hub:...``.

    Raises:
        DataError: The file as a whole cannot be read.
        HubError: The hub did not deliver the dataset.
    """
    if str(path).startswith(HUB_PREFIX):
        from .hub_datasets import read_dataset

        for line, values in enumerate(read_dataset(str(path)), start=1):
            yield RawRow(path, line, values)
        return
    reader = _READERS.get(path.name.removesuffix(".gz").rpartition(".")[2].lower())
    if reader is None:
        raise DataError(
            [Problem(path, 0, "has an unsupported file extension: use .jsonl, .csv (optionally .gz) or .parquet")]
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError([Problem(path, 0, f"cannot be read: {error.strerror or error}")]) from None
    except (EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(
            [Problem(path, 0, f"is damaged, or its content does not match its extension: {error}")]
        ) from None


def require_unicode(field: str, text: str) -> None:
    """Rejects lone surrogates, which JSON can express but neither tokenizers nor UTF-8 files accept.

    Raises:
        ValueError: The text contains one; the message names the field, the surrogate and how to correct it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"{text[error.start]!r} is a lone surrogate; write the complete character, or remove it"
        raise ValueError(f"field {field!r}: {reason}") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Iterator[RawRow | Problem]:
    with _open(path) as stream:
        # Lines of a binary stream end at "\n" alone; text mode would also split at "\r" inside a JSON string.
        for line, content in enumerate(stream, start=1):
            if not content.strip():
                continue
            try:
                values = json.loads(content)
            except ValueError as error:
                yield Problem(path, line, f"is not valid JSON: {error}")
                continue
            if isinstance(values, dict):
                yield RawRow(path, line, values)
            else:
                yield Problem(path, line, 'is not a JSON object: write {"text": ..., ...}')


def _read_csv(path: Path) -> Iterator[RawRow | Problem]:
    # utf-8-sig: spreadsheet programs write a byte order mark, which would otherwise join the first field's name.
    with _open(path) as stream, _text(stream) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError([Problem(path, 1, f"has duplicate column names: {', '.join(header)}")])
            for cells in reader:
                if len(cells) == len(header):
                    values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                    yield RawRow(path, reader.line_num, cast(dict[str, object], values))
                elif cells:
                    counts = f"{len(cells)} cells but the header has {len(header)}"
                    yield Problem(path, reader.line_num, f"has {counts}: quote texts that contain a comma")
        except csv.Error as error:
            # The reader cannot find the start of the next row.
            raise DataError([Problem(path, reader.line_num, f"is not valid CSV: {error}")]) from None


def _text(stream: IO[bytes]) -> IO[str]:
    return io.TextIOWrapper(cast(io.BufferedReader, stream), encoding="utf-8-sig", newline="")


def _read_parquet(path: Path) -> Iterator[RawRow | Problem]:
    line = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
            for values in batch.to_pylist():
                line += 1
                yield RawRow(path, line, values)


_READERS: dict[str, Callable[[Path], Iterator[RawRow | Problem]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}

"""Files of rows by their names: format, compression, and faults of a whole file.

::

    path --extension--> format --first bytes--> is it that format? --jsonl, csv, parquet--> RawRow or Problem
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, cast

from .csv import read_csv
from .jsonl import read_jsonl
from .limits import EXPANSION_ALLOWANCE, MAX_EXPANSION
from .lines import Lines
from .parquet import read_parquet
from .types import Problem, RawRow

_Reader = Callable[[Lines, Path, frozenset[str] | None], Iterator[RawRow | Problem]]
_TEXT_READERS: dict[str, _Reader] = {"jsonl": read_jsonl, "csv": read_csv}
_FORMATS = "use .jsonl, .csv (either also with .gz) or .parquet"
# First bytes of files whose content is not what a text format's extension says.
_SIGNATURES = (
    (b"PAR1", "is a Parquet file: end its name with .parquet"),
    (b"\x1f\x8b", "is compressed with gzip: end its name with .gz"),
    (b"PK\x03\x04", "is an Excel workbook or another ZIP archive: save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook: save it as CSV UTF-8"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard: decompress it, or compress it with gzip"),
    (b"BZh", "is compressed with bzip2: decompress it, or compress it with gzip"),
    (b"\xfd7zXZ", "is compressed with xz: decompress it, or compress it with gzip"),
    (b"version https://git-lfs", "is a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"\xff\xfe", "is UTF-16: save the file as UTF-8"),
    (b"\xfe\xff", "is UTF-16: save the file as UTF-8"),
)
_SNIFFED_BYTES = 512
# Bytes that texts do not contain.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class _ExpansionError(Exception):
    """A file holds far more than its size on disk."""


def read_rows(path: Path, fields: Collection[str] | None = None) -> Iterator[RawRow | Problem]:
    """Reads a file row by row.

    Args:
        path: A ``.jsonl``, ``.csv`` (either optionally ``.gz``) or ``.parquet`` file.
        fields: The fields whose values are read; the others are neither converted nor kept. None for all of them.

    Yields:
        The rows. An unreadable row is a ``Problem`` in its position. A fault of the whole file is a ``Problem`` with
        ``is_final``, after which nothing follows.
    """
    named = None if fields is None else frozenset(fields)
    name = path.name.lower()
    extension = name.removesuffix(".gz").rpartition(".")[2]
    if name.endswith(".parquet.gz"):
        yield _final(path, 0, "Parquet files contain their own compression: decompress the file with gunzip")
    elif extension == "parquet":
        yield from _guarded(path, read_parquet(path, named) if _is_parquet(path) else _not_parquet(path))
    elif extension in _TEXT_READERS:
        yield from _guarded(path, _read_text(path, _TEXT_READERS[extension], named, is_compressed=name.endswith(".gz")))
    else:
        yield _final(path, 0, f"has an unsupported file extension: {_FORMATS}")


def read_stream(
    stream: IO[bytes], extension: str, name: Path, fields: Collection[str] | None = None
) -> Iterator[RawRow | Problem]:
    """Reads rows from an open stream, such as stdin, and leaves it open.

    Args:
        stream: A buffered binary stream.
        extension: ``jsonl`` or ``csv``.
        name: Name of the stream in positions.
        fields: As in ``read_rows``.

    Yields:
        As ``read_rows``.
    """
    lines = Lines(stream)
    try:
        named = None if fields is None else frozenset(fields)
        yield from _guarded(name, _TEXT_READERS[extension](lines, name, named))
    finally:
        lines.detach()


def _read_text(
    path: Path, reader: _Reader, fields: frozenset[str] | None, *, is_compressed: bool
) -> Iterator[RawRow | Problem]:
    with path.open("rb") as file:
        if is_compressed and file.peek(2)[:2] not in (b"\x1f\x8b", b""):
            yield _final(path, 0, "is not compressed with gzip: remove .gz from its name")
            return
        # An io.BufferedReader requests what it needs and no more from a bounded stream.
        stream = io.BufferedReader(_Gunzip(file, path.stat().st_size), 2**16) if is_compressed else file
        if reason := _wrong_content(stream.peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES]):
            yield _final(path, 0, reason)
            return
        lines = Lines(stream)
        try:
            yield from reader(lines, path, fields)
        finally:
            lines.detach()


def _guarded(path: Path, rows: Iterator[RawRow | Problem]) -> Iterator[RawRow | Problem]:
    """Yields rows, and a final problem in place of an error of the file."""
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except _ExpansionError:
        reason = (
            f"expands to more than {MAX_EXPANSION} times its size on disk, the limit: decompress it if this is intended"
        )
        yield _final(path, line, f"{_after(line)}{reason}")
    except EOFError:
        yield _final(path, line, f"{_after(line)}the compressed data ends early: copy or download the file again")
    except (zlib.error, gzip.BadGzipFile) as error:
        yield _final(path, line, f"{_after(line)}the compressed data is damaged ({error}): copy the file again")
    except OSError as error:
        yield _final(path, line, f"{_after(line)}cannot be read: {error.strerror or error}")


def _after(line: int) -> str:
    return "after this line, " if line else ""


def _wrong_content(head: bytes) -> str | None:
    """Returns why a file cannot be a text file in UTF-8, from its first bytes; None if it can."""
    for signature, reason in _SIGNATURES:
        if head.startswith(signature):
            return reason
    # A CSV header may begin so, too, such as ORCID; what follows in an ORC file is binary.
    if head.startswith(b"ORC") and _CONTROL.search(head):
        return "is an ORC file: convert it to Parquet"
    halves = head[0::2], head[1::2]
    zeros = sorted(half.count(0) / len(half) for half in halves if half)
    # In UTF-16, the characters of JSON and CSV, and those of most European languages, have one byte that is zero.
    if len(head) >= 4 and zeros[0] < 0.1 and zeros[1] > 0.4:
        return "is UTF-16: save the file as UTF-8"
    return None


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PAR1", b"PARE")
    except OSError:
        return True  # the reader reports it


def _not_parquet(path: Path) -> Iterator[Problem]:
    yield _final(path, 0, f"is not a Parquet file, or is empty: {_FORMATS}, as its content requires")


def _final(path: Path, line: int, reason: str) -> Problem:
    return Problem(path, line, reason, is_final=True)


class _Gunzip(io.RawIOBase):
    """Decompresses a gzip file of one or more members, up to ``MAX_EXPANSION`` times its size."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._gzip = gzip.GzipFile(fileobj=cast(io.BufferedReader, file))
        self._left = max(EXPANSION_ALLOWANCE, MAX_EXPANSION * size)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Decompresses into a buffer; returns the number of bytes, 0 at the end.

        Raises:
            _ExpansionError: The file holds too much.
        """
        content = self._gzip.read1(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise _ExpansionError
        buffer[: len(content)] = content
        return len(content)

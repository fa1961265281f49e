"""Readers of rows: CSV, JSON Lines, compressed files and Parquet."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from .target import Check, Target, folder

_MAX_ROW_CHARACTERS = 16_000
# Limits of the readers of rows, lowered for the files of the fuzzer, which are small.
_ROW_LIMITS = {
    "csv.MAX_ROW_CHARACTERS": _MAX_ROW_CHARACTERS,
    "lines.Lines.read.__defaults__": (_MAX_ROW_CHARACTERS,),
    "values.MAX_VALUE_CHARACTERS": 200,
    "parquet._MAX_VALUE_BYTES": 200,
    "files.EXPANSION_ALLOWANCE": 2000,
    "parquet.EXPANSION_ALLOWANCE": 2000,
}


def _rows(extension: str) -> Callable[[ExitStack], Check]:
    def create(stack: ExitStack) -> Check:
        from polyhead_rows import Problem, RawRow, read_rows, read_stream

        path = folder(stack) / f"rows.{extension}"
        for name, limit in _ROW_LIMITS.items():
            stack.enter_context(mock.patch(f"polyhead_rows.{name}", limit))

        def check(data: bytes) -> None:
            """Reads a file of rows: each is a row or a problem with its position, and nothing follows a final one."""
            path.write_bytes(data)
            readers = [read_rows(path, ("text", "label")), read_rows(path, None)]
            if extension in ("csv", "jsonl"):
                readers.append(read_stream(io.BytesIO(data), extension, Path("-")))
            for rows in map(list, readers):
                for row in rows:
                    assert isinstance(row, RawRow | Problem)
                    assert str(row)
                assert not any(isinstance(row, Problem) and row.is_final for row in rows[:-1])

        return check

    return create


def _text_rows(extension: str) -> Callable[[], list[bytes]]:
    samples = {
        "csv": [
            'text,label\n"a ""b""",x\n',
            "sep=;\ntext;label\r\na;b\r\n",
            "text\tlabel\na\tb\n",
            "\ufefftext,label\n",
        ],
        "jsonl": [
            '{"text": "a", "label": ["x", 1.5, null]}\n',
            '[1]\n{"text": "\\ud83d\\ude42"}\n',
            '{"a": {"b": 1}}',
            '{"text": "a", "text": "b"}\n{"text": "\\ud800"}\n',
            f'{{"text": "{"a" * 20_000}"}}\n{{"text": "a"}}\n',
            # Beyond what Python's parser reads.
            f'{{"other": {"[" * 2000}{"]" * 2000}, "text": "a", "number": {"9" * 5000}}}\n',
        ],
    }
    return lambda: [sample.encode() for sample in samples[extension]]


def _compressed_rows() -> list[bytes]:
    members = [gzip.compress(sample, mtime=0) for sample in _text_rows("jsonl")()]
    return [*members, members[0] + members[0], gzip.compress(b"\n" * 100_000, mtime=0)]


def _parquet_rows() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "text": ["a", None, "b" * 300],
        "label": [["x"], [], None],
        "dictionary": pa.array(["a", "a", None]).dictionary_encode(),
        "bytes": [b"a", b"\xff", None],
        "half": pa.array([0.1, None, -0.0], pa.float16()),
        "single": pa.array([0.1, None, float("nan")], pa.float32()),
        "decimal": [Decimal("1.50"), None, Decimal("-0.01")],
        "time": pa.array([0, None, 2**62], pa.timestamp("ns", "UTC")),
        "struct": [{"a": 1}, None, {"a": None}],
    }
    options: tuple[dict[str, Any], ...] = (
        {"compression": "none"},
        {"compression": "zstd", "row_group_size": 1},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    )
    found = []
    for table in (pa.table({name: columns[name] for name in ("text", "label")}), pa.table(columns)):
        for one in options:
            file = io.BytesIO()
            parquet.write_table(table, file, **one)
            found.append(file.getvalue())
    return found


ROW_TARGETS = {
    "csv": Target(_rows("csv"), _text_rows("csv")),
    "jsonl": Target(_rows("jsonl"), _text_rows("jsonl")),
    "gzip": Target(_rows("jsonl.gz"), _compressed_rows),
    "parquet": Target(_rows("parquet"), _parquet_rows),
}

"""The same rows, written in every format, are read as the same rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead_rows import RawRow, read_rows
from polyhead_training.data.labels import read_label
from polyhead_training.model_config import HeadConfig

FIELDS = ("text", "label")
FORMATS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet")
# CSV has no null: an empty cell is one. A text may hold anything else.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
labels = st.one_of(
    st.none(),
    texts,
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.sampled_from(
        ["1.0", "1.5", "v1.0", "NaN", "None", "True", "false", " a", "a\u200b", '"', "a,b", "sep=;", "\ufeff"]
    ),
)
rows_of_strings = st.lists(st.tuples(texts, labels, st.text(max_size=3)), max_size=8)


def write(folder: Path, extension: str, rows: Sequence[tuple[object, object, object]]) -> Path:
    """Writes rows of a text, a label and a note that no reader names."""
    path = folder / f"rows.{extension}"
    names = ("text", "label", "note")
    if extension == "parquet":
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path, row_group_size=3)
        return path
    stream = io.StringIO(newline="")
    if extension.startswith("csv"):
        writer = csv.writer(stream)
        writer.writerows([names, *rows])
    else:
        stream.writelines(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    content = stream.getvalue().encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(content) if extension.endswith(".gz") else content)
    return path


def read(path: Path) -> list[tuple[object, ...]]:
    found = list(read_rows(path, FIELDS))
    assert all(isinstance(row, RawRow) for row in found), found
    return [tuple(row.values[field] for field in FIELDS) for row in found if isinstance(row, RawRow)]


@given(rows_of_strings)
@settings(max_examples=60)
def test_strings_are_equal_in_every_format(rows: list[tuple[str, str | None, str]]) -> None:
    expected = [(text, label) for text, label, _ in rows]
    with TemporaryDirectory() as folder:
        for extension in FORMATS:
            assert read(write(Path(folder), extension, rows)) == expected, extension


numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(-1e15, 1e15).map(lambda number: round(number, 3)))


@given(st.lists(st.one_of(st.none(), numbers), min_size=1, max_size=8))
@settings(max_examples=60)
def test_numbers_are_equal_labels_in_every_format(values: list[float | None]) -> None:
    """CSV holds digits, JSON numbers, and Parquet one type for the column."""
    head = HeadConfig(name="topic", kind="softmax")
    # Parquet and data frames have one type for a column: floats as soon as one value has a fraction or is missing.
    column = (
        values if all(isinstance(value, int) for value in values) else [None if v is None else float(v) for v in values]
    )
    found = {}
    with TemporaryDirectory() as folder:
        for extension in FORMATS:
            cells = column if extension == "parquet" or not extension.startswith("jsonl") else values
            path = write(Path(folder), extension, [("a", cell, "") for cell in cells])
            found[extension] = [read_label(head, label) for _, label in read(path)]
    assert all(names == found["csv"] for names in found.values()), found


@given(st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=20)
def test_booleans_are_equal_labels_in_every_format(values: list[bool | None]) -> None:
    head = HeadConfig(name="topic", kind="softmax")
    with TemporaryDirectory() as folder:
        found = [
            [
                read_label(head, label)
                for _, label in read(write(Path(folder), extension, [("a", v, "") for v in values]))
            ]
            for extension in FORMATS
        ]
    assert all(names == [None if v is None else str(v).lower() for v in values] for names in found)

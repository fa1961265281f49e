from __future__ import annotations

import datetime
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polyhead_rows import Problem, RawRow, read_rows

FIELDS = ("text", "label")
INVALID = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


def write(path: Path, labels: Any, **options: Any) -> None:
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(len(labels))], "label": labels}), path, **options)


def labels(path: Path) -> list[object]:
    found = list(read_rows(path, FIELDS))
    return [row.values["label"] if isinstance(row, RawRow) else row for row in found]


def test_rows_are_numbered_and_nulls_are_missing(path: Path) -> None:
    write(path, pa.array([1, None], pa.int64()))
    assert [(row.line, row.values) for row in read_rows(path, FIELDS) if isinstance(row, RawRow)] == [
        (1, {"text": "row 0", "label": 1}),
        (2, {"text": "row 1", "label": None}),
    ]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", None, "a"], pa.string(), ["a", None, "a"]),
        (["a", None], pa.large_string(), ["a", None]),
        (["a", None], pa.string_view(), ["a", None]),
        (["a", None, "b"], pa.dictionary(pa.int8(), pa.string()), ["a", None, "b"]),
        (["a", None, "b"], pa.dictionary(pa.int32(), pa.large_string()), ["a", None, "b"]),
        ([1, None, 2], pa.dictionary(pa.int32(), pa.int64()), [1, None, 2]),
        ([2**64 - 1], pa.uint64(), [2**64 - 1]),
        ([1.0, 0.5, None], pa.float16(), [1.0, 0.5, None]),
        ([1.0, 0.1, None], pa.float32(), [1.0, 0.1, None]),
        ([1.0, 0.1, None], pa.float64(), [1.0, 0.1, None]),
        ([Decimal("1.00"), None], pa.decimal128(20, 2), [Decimal("1.00"), None]),
        ([Decimal(7), None], pa.decimal256(60, 0), [Decimal(7), None]),
        ([True, None], pa.bool_(), [True, None]),
        ([None, None], pa.null(), [None, None]),
        ([b"\xff", None], pa.binary(), [b"\xff", None]),
        ([["a"], None], pa.list_(pa.string()), [["a"], None]),
        ([], pa.string(), []),
    ],
    ids=str,
)
def test_values_of_every_type(path: Path, values: list[object], kind: Any, expected: list[object]) -> None:
    write(path, pa.array(values, kind))
    assert labels(path) == expected


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_every_encoding_of_strings_is_read(path: Path, encoding: str | None) -> None:
    values = [f"label {n % 7}" for n in range(10_000)]
    options = {"use_dictionary": False, "column_encoding": {"label": encoding}} if encoding else {}
    write(path, values, row_group_size=6000, **options)
    assert labels(path) == values


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pa.array([2932896 + 10**6, 5], pa.date32()), "a value of type date32[day] cannot be read"),
        (pa.array([2**62, 5], pa.timestamp("us")), "a value of type timestamp[us] cannot be read"),
        (INVALID, "is not UTF-8: write the column again as UTF-8 strings"),
    ],
)
def test_value_that_python_cannot_hold_is_a_problem_of_its_row(path: Path, values: Any, reason: str) -> None:
    write(path, values)
    problem, value = labels(path)
    assert isinstance(problem, Problem)
    assert str(problem).startswith(f"{path}:1: field 'label': {reason}")
    assert value in {"a", datetime.date(1970, 1, 6), datetime.datetime(1970, 1, 1, microsecond=5)}


def test_unnamed_columns_have_no_influence(path: Path) -> None:
    columns = {
        "text": ["one"],
        "note": pa.array([2932896 + 10**6], pa.date32()),
        "stamp": pa.array([2**62], pa.timestamp("us")),
        "bytes": INVALID[:1],
        "label": ["x"],
    }
    table = pa.table(columns).append_column("note", pa.array(["again"]))
    pq.write_table(table, path)
    (row,) = read_rows(path, FIELDS)
    assert isinstance(row, RawRow)
    assert (row.values, len(row.names)) == ({"text": "one", "label": "x"}, 6)


def test_named_column_that_occurs_twice_is_a_problem(path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"], "label": ["x"]}).append_column("label", pa.array(["y"])), path)
    (problem,) = read_rows(path, FIELDS)
    assert str(problem) == (f"{path}: has more than one column 'label' among its 3 columns: remove or rename one")


def test_names_with_dots_are_names(path: Path) -> None:
    pq.write_table(pa.table({"a.b": ["x"], "a": [{"b": "y"}], "text": ["t"]}), path)
    found = [[row.values for row in read_rows(path, fields) if isinstance(row, RawRow)] for fields in (["a.b"], ["a"])]
    assert found == [[{"a.b": "x"}], [{"a": {"b": "y"}}]]


def test_rows_without_a_named_column_are_rows(path: Path) -> None:
    pq.write_table(pa.table({"body": ["one", "two"]}), path)
    assert [(row.line, row.names) for row in read_rows(path, FIELDS) if isinstance(row, RawRow)] == [
        (1, ("body",)),
        (2, ("body",)),
    ]


def test_file_without_row_groups_has_no_rows(path: Path) -> None:
    pq.ParquetWriter(path, pa.schema([("text", pa.string())])).close()
    assert list(read_rows(path, FIELDS)) == []


def test_file_cut_off_is_a_problem(path: Path) -> None:
    write(path, ["a"] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = read_rows(path, FIELDS)
    assert isinstance(problem, Problem)
    assert problem.is_final
    assert "cannot be read" in problem.reason


def test_missing_library_is_a_problem_with_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, ["a"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (problem,) = read_rows(path, FIELDS)
    assert "requires pyarrow: pip install 'polyhead[training]'" in str(problem)

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from polyhead_training.data.readers import RawRow, read_rows
from polyhead_training.errors import DataError, Problem


def values(path: Path) -> list[dict[str, object]]:
    found = list(read_rows(path))
    assert all(isinstance(row, RawRow) for row in found)
    return [row.values for row in found if isinstance(row, RawRow)]


def test_jsonl_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "one\u2028still one\\nand \x85 more"}\n\n{"text": "two"}'.encode())
    assert values(path) == [{"text": "one\u2028still one\nand \x85 more"}, {"text": "two"}]


def test_invalid_jsonl_lines_are_reported_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n[1]\n{"text": "\xff"}\n{"text": "five"}\n')
    found = list(read_rows(path))
    problems = [row for row in found if isinstance(row, Problem)]
    assert [problem.line for problem in problems] == [2, 3, 4]
    assert "is not valid JSON" in problems[0].reason
    assert "is not a JSON object" in problems[1].reason
    assert isinstance(found[4], RawRow)


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz"])
def test_gzip_files_are_decompressed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    content = b'{"text": "one"}\n' if "jsonl" in ending else b"text\none\n"
    path.write_bytes(gzip.compress(content))
    assert values(path) == [{"text": "one"}]


def test_csv_keeps_na_as_text_and_empty_cells_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\nNA,nan\n"one, two\nthree",\n')
    assert values(path) == [{"text": "NA", "label": "nan"}, {"text": "one, two\nthree", "label": None}]


def test_csv_row_with_a_wrong_cell_count_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",x\nthree, four,x\n')
    (_, problem) = read_rows(path)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.reason.split(":")[0]) == (4, "has 3 cells but the header has 2")


def test_csv_line_is_the_last_line_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"one\ntwo"\nthree\n')
    assert [row.line for row in read_rows(path)] == [3, 4]


def test_parquet_nulls_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["one", "two"], "sentiment": pyarrow.array([1, None], pyarrow.int64())})
    pyarrow.parquet.write_table(table, path)
    assert values(path) == [{"text": "one", "sentiment": 1}, {"text": "two", "sentiment": None}]
    assert [row.line for row in read_rows(path)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one", "has an unsupported file extension"),
        ("a.jsonl.gz", b"not gzip", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n', mtime=0)[:-6], "is damaged"),
        ("a.csv", b"text\n\xff\n", "is damaged"),
        ("a.csv", b"text,text\n1,2\n", "has duplicate column names"),
        ("a.csv", b'text\n"one"two\n', "a.csv:2: is not valid CSV"),
        ("a.parquet", b"not parquet", "is damaged"),
    ],
)
def test_unreadable_file_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))

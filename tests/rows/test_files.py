from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from polyhead_rows import Problem, RawRow, read_rows, read_stream

FIELDS = ("text", "label")


def read(path: Path) -> tuple[list[RawRow], list[Problem]]:
    found = list(read_rows(path, FIELDS))
    return [row for row in found if isinstance(row, RawRow)], [row for row in found if isinstance(row, Problem)]


def table(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one"], "label": ["x"]}), path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.JSONL.GZ", "a.CSV.gz"])
def test_gzip_files_are_decompressed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = b'{"text": "one"}\n' if "jsonl" in name.lower() else b"text\none\n"
    path.write_bytes(gzip.compress(content))
    assert [row.values for row in read(path)[0]] == [{"text": "one"}]


def test_members_of_a_gzip_file_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'\xef\xbb\xbf{"text": "two"}\n') + b"\0" * 9)
    rows, problems = read(path)
    assert ([(row.line, row.values["text"]) for row in rows], problems) == ([(1, "one"), (2, "two")], [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-6], "the compressed data ends early: copy or download the file again"),
        (lambda content: content[:30], "the compressed data ends early"),
        (lambda content: content + b"junk", "the compressed data is damaged"),
        (lambda content: content[:-8] + b"\0" * 8, "the compressed data is damaged .CRC check failed"),
        (lambda content: content[:10] + b"\xff" * 20, "the compressed data is damaged"),
    ],
)
def test_damaged_gzip_file_is_a_problem_after_its_last_row(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    content = gzip.compress(b"".join(b'{"text": "row %d"}\n' % number for number in range(100)), mtime=0)
    path.write_bytes(damage(content))  # type: ignore[operator]
    rows, (problem,) = read(path)
    assert problem.is_final
    assert problem.line == len(rows)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem.reason)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one", "has an unsupported file extension: use .jsonl"),
        ("a.jsonl.gz", b'{"text": "one"}\n', "is not compressed with gzip: remove .gz from its name"),
        ("a.parquet.gz", b"", "Parquet files contain their own compression"),
        ("a.csv", gzip.compress(b"text\none\n", mtime=0), "is compressed with gzip: end its name with .gz"),
        ("a.csv.gz", gzip.compress(gzip.compress(b"text\none\n", mtime=0), mtime=0), "is compressed with gzip"),
        ("a.jsonl", b"PAR1\x15\x04", "is a Parquet file: end its name with .parquet"),
        ("a.csv", b"PK\x03\x04\x14\x00", "is an Excel workbook or another ZIP archive: save it as CSV UTF-8"),
        ("a.csv", "text\none\n".encode("utf-16"), "is UTF-16: save the file as UTF-8"),
        ("a.csv", "text\none\n".encode("utf-16-le"), "is UTF-16"),
        ("a.jsonl", '{"text": "one"}\n'.encode("utf-16-be"), "is UTF-16"),
        ("a.csv", b"ORC\x08\x03\x12\x04text", "is an ORC file: convert it to Parquet"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.parquet", b"text\none\n", "is not a Parquet file"),
        ("a.parquet", b"", "is not a Parquet file, or is empty"),
        ("a.parquet", b"PAR1" + b"\0" * 20, "cannot be read from its first row"),
    ],
)
def test_file_whose_content_is_not_what_its_name_says(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    rows, (problem,) = read(tmp_path / name)
    assert rows == []
    assert problem.is_final
    assert str(problem).startswith(f"{tmp_path / name}: ")
    assert message in problem.reason


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_file_that_cannot_be_opened_is_a_problem(tmp_path: Path, name: str, is_folder: bool) -> None:
    if is_folder:
        (tmp_path / name).mkdir()
    _, (problem,) = read(tmp_path / name)
    assert "cannot be read" in problem.reason


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert read(tmp_path / name) == ([], [])


def test_header_may_begin_like_an_orc_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ORCID,text\n0000-0002,one\n")
    rows, problems = read(tmp_path / "a.csv")
    assert ([row.values["text"] for row in rows], problems) == (["one"], [])


def test_stream_is_read_and_left_open() -> None:
    stream = io.BufferedReader(io.BytesIO(b'{"text": "one", "label": "x", "note": 1}\n{"text"\n'))
    row, problem = read_stream(stream, "jsonl", Path("stdin"), FIELDS)
    assert isinstance(row, RawRow)
    assert row.values == {"text": "one", "label": "x"}
    assert str(problem).startswith("stdin:2: is not valid JSON")
    assert not stream.closed

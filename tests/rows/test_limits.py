"""Files that hold far more than they cost: memory stays bounded, and the message names the limit."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polyhead_rows import MAX_VALUE_CHARACTERS, Problem, RawRow, limits, read_rows

MIB = 2**20
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
from pathlib import Path
from polyhead_rows import read_rows
for row in read_rows(Path(sys.argv[1]), ["text", "label"]):
    last = row
print(last)
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def one_line(before: bytes, after: bytes) -> Callable[[Path], None]:
    """Writes a compressed line of 200 MiB."""

    def write(path: Path) -> None:
        with gzip.open(path, "wb", 1) as stream:
            stream.write(before)
            for _ in range(200):
                stream.write(b"a" * MIB)
            stream.write(after)

    return write


def many_lines(path: Path) -> None:
    with gzip.open(path, "wb", 9) as stream:
        for _ in range(70):
            stream.write(b'{"text": "' + b"a" * (3 * MIB) + b'"}\n')


def repeated_string(path: Path) -> None:
    indices = pa.array([0] * 100_000, pa.int32())
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * (3 * MIB)]))
    pq.write_table(pa.table({"text": texts}), path, store_schema=False)


def shared_prefixes(path: Path) -> None:
    texts = ["a" * MIB + f"{number:08}" for number in range(100)]
    encoding = {"text": "DELTA_BYTE_ARRAY"}
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, column_encoding=encoding, compression="zstd")


def long_string(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * (100 * MIB)]}), path, use_dictionary=False, compression="zstd")


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.jsonl.gz", one_line(b'{"text": "', b'"}\n'), "expands to more than 100 times its size on disk"),
        ("a.jsonl.gz", one_line(b'{"text": "b", "note": "', b'"}\n'), "expands to more than 100 times"),
        ("a.csv.gz", one_line(b'text,label\nb,x\n"', b""), "expands to more than 100 times its size on disk"),
        ("a.jsonl.gz", many_lines, "expands to more than 100 times its size on disk"),
        ("a.parquet", repeated_string, "its values are more than 100 times as large as the file"),
        ("a.parquet", shared_prefixes, "its values are more than 100 times as large as the file"),
        ("a.parquet", long_string, "its values are more than 100 times as large as the file"),
    ],
)
def test_memory_of_a_file_that_expands_is_bounded(
    tmp_path: Path, name: str, write: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / name
    write(path)
    assert path.stat().st_size < 4 * MIB
    program = [sys.executable, "-c", PROGRAM, str(path)]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    last, peak_kib = output.splitlines()
    assert reason in last
    assert int(peak_kib) < 350 * 1024


def test_large_file_that_expands_less_is_read(tmp_path: Path) -> None:
    """Control: 100 MiB that compress by a factor of about 30."""
    path, words = tmp_path / "a.jsonl.gz", random.Random(0)
    with gzip.open(path, "wb", 1) as stream:
        for _ in range(1000):
            stream.write(b'{"text": "' + words.randbytes(1700).hex().encode() * 30 + b'"}\n')
    assert 100 * MIB / path.stat().st_size > 10
    assert sum(isinstance(row, RawRow) for row in read_rows(path, ["text"])) == 1000


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_value_above_the_limit_is_a_problem_of_its_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = ["a" * MAX_VALUE_CHARACTERS, "a" * (MAX_VALUE_CHARACTERS + 1), "last"]
    if name == "a.csv":
        path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    elif name == "a.jsonl":
        path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), path)
    first, problem, last = read_rows(path, ["text"])
    assert isinstance(first, RawRow)
    assert isinstance(last, RawRow)
    assert isinstance(problem, Problem)
    assert f"more than the limit of {MAX_VALUE_CHARACTERS:,} characters of a value" in problem.reason


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_row_above_the_limit_is_a_problem_of_its_row(tmp_path: Path, name: str) -> None:
    path, note = tmp_path / name, "n" * limits.MAX_ROW_CHARACTERS
    rows = [("one", ""), ("two", note), ("three", "")]
    if name == "a.csv":
        path.write_text("text,note\n" + "".join(f"{text},{note}\n" for text, note in rows))
    else:
        path.write_text("".join(f'{{"text": "{text}", "note": "{note}"}}\n' for text, note in rows))
    first, problem, last = read_rows(path, ["text"])
    assert (isinstance(first, RawRow), isinstance(last, RawRow)) == (True, True)
    assert isinstance(problem, Problem)
    assert f"more than the limit of {limits.MAX_ROW_CHARACTERS:,} characters of a row" in problem.reason

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import InputError, UsageError
from polyhead_bulk.readers import Piece, open_reader
from polyhead_bulk.selection import Selection
from polyhead_bulk.sources import find_sources
from polyhead_bulk.texts import Texts

SELECTION = Selection("text", "id", ("stars",))


def everything(_: int) -> bool:
    return True


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"w{number} é", "stars": number / 2} for number in range(count)]


def write(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    table = (
        pa.Table.from_pylist(list(rows))
        if rows
        else pa.schema([("id", "int64"), ("text", "string"), ("stars", "double")]).empty_table()
    )
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(table, path, **options)
    elif name.endswith(".arrow"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=options.get("row_group_size", 37))
    elif name.endswith(".arrows"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=37)
    elif ".csv" in name:
        sink = io.BytesIO()
        pa.csv.write_csv(table, sink)
        path.write_bytes(compressed(name, sink.getvalue()))
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(compressed(name, lines.encode()))
    return path


def compressed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return bytes(pa.compress(content, "zstd", asbytes=True)) if name.endswith(".zst") else content


def read(
    path: Path | str,
    selection: Selection = SELECTION,
    part_rows: int = 100,
    want: Callable[[int], bool | None] = everything,
    **types: Any,
) -> list[Texts]:
    (source,) = find_sources([str(path)], Path("nowhere"))
    return list(open_reader(source, selection, part_rows, types).pieces(want))


def fragments(pieces: Sequence[Texts]) -> list[tuple[int, int, int]]:
    """Returns fragment, first row and number of rows of each fragment; asserts that exactly its last piece ends it."""
    found: list[tuple[int, int, int]] = []
    ended = True
    for texts in pieces:
        piece: Piece = texts.payload
        if ended:
            found.append((piece.fragment, piece.first_row, len(texts)))
        else:
            fragment, first, size = found[-1]
            assert (fragment, first + size) == (piece.fragment, piece.first_row)
            found[-1] = fragment, first, size + len(texts)
        ended = piece.ends
    assert ended
    return found


EVERY = ["parquet", "arrow", "arrows", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "csv.zst"]


@pytest.mark.parametrize("extension", EVERY)
def test_rows_are_divided_into_fragments_in_order(tmp_path: Path, extension: str) -> None:
    rows = rows_of(2250)
    pieces = read(write(tmp_path / f"a.{extension}", rows))
    assert fragments(pieces) == [(n, 100 * n, 100) for n in range(22)] + [(22, 2200, 50)]
    assert [text for piece in pieces for text in piece.values] == [row["text"] for row in rows]
    columns = [piece.payload.columns for piece in pieces]
    assert [list(one) for one in columns] == [["id", "stars"]] * len(columns)
    stars = [star for one in columns for star in one["stars"].to_pylist()]
    # The columns of a CSV file are strings, as ids such as 007 would not survive as numbers.
    assert [float(star) for star in stars] == [row["stars"] for row in rows]
    assert (type(stars[0]) is str) == extension.startswith("csv")
    assert [piece.payload.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("extension", EVERY)
@pytest.mark.parametrize("count", [0, 100, 101])
def test_the_last_fragment_is_known_as_such(tmp_path: Path, extension: str, count: int) -> None:
    pieces = read(write(tmp_path / f"a.{extension}", rows_of(count)))
    expected = {0: [(0, 0, 0)], 100: [(0, 0, 100)], 101: [(0, 0, 100), (1, 100, 1)]}[count]
    if count or not extension.startswith(("jsonl", "ndjson")):
        assert fragments(pieces) == expected
    assert pieces[-1].payload.is_last


@pytest.mark.parametrize("extension", EVERY)
def test_unwanted_fragments_are_left_out(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"a.{extension}", rows_of(950))
    pieces = read(path, want=lambda fragment: fragment % 3 == 1)
    assert fragments(pieces) == [(1, 100, 100), (4, 400, 100), (7, 700, 100)]
    assert pieces[-1].values[-1] == "w799 é"
    assert read(path, want=lambda fragment: fragment == 9)[-1].payload.is_last
    # Nothing from fragment 2 on is wanted: reading ends there.
    assert fragments(read(path, want=lambda fragment: True if fragment < 2 else None)) == [(0, 0, 100), (1, 100, 100)]


@pytest.mark.parametrize("part_rows", [1, 7, 64, 1000, 2500])
@pytest.mark.parametrize("group", [1, 40, 333, 5000])
def test_parquet_fragments_are_row_groups_or_slices_of_one(tmp_path: Path, part_rows: int, group: int) -> None:
    rows = rows_of(500)
    pieces = read(write(tmp_path / "a.parquet", rows, row_group_size=group), part_rows=part_rows)
    assert [text for piece in pieces for text in piece.values] == [row["text"] for row in rows]
    found = fragments(pieces)
    assert all(size <= part_rows for _, _, size in found)
    assert [fragment for fragment, _, _ in found] == list(range(len(found)))
    # No fragment has rows of two row groups unless it has whole ones.
    for _, first, size in found:
        if first // group != (first + size - 1) // group:
            assert first % group == 0
            assert (first + size) % group == 0 or first + size == 500


def test_parquet_slices_of_a_row_group_can_be_read_in_any_selection(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of(5000), row_group_size=5000)
    for wanted in ({0, 1, 2}, {3}, {0, 4, 49}, {17, 18, 40}):
        pieces = read(path, want=lambda fragment, wanted=wanted: fragment in wanted)  # type: ignore[misc]
        assert [text for piece in pieces for text in piece.values] == [
            f"w{number} é" for fragment in sorted(wanted) for number in range(100 * fragment, 100 * fragment + 100)
        ]


def test_a_row_group_of_thousands_of_slices_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of(5000), row_group_size=5000)
    assert [text for piece in read(path, part_rows=1) for text in piece.values] == [f"w{n} é" for n in range(5000)]


@pytest.mark.parametrize("extension", ["parquet", "arrow", "jsonl"])
def test_fields_of_structs_are_named_by_paths(tmp_path: Path, extension: str) -> None:
    rows: list[dict[str, Any]] = [
        {"review": {"body": "w1", "by": {"name": "x"}}, "id": 1},
        {"review": None, "id": 2},
        {"review": {"body": None, "by": None}, "id": 3},
    ]
    (texts,) = read(write(tmp_path / f"a.{extension}", rows), Selection("review.body", "review.by.name", ("id",)))
    assert texts.values == ["w1", "", ""]
    assert texts.errors == {1: "the text is null", 2: "the text is null"}
    assert {name: column.to_pylist() for name, column in texts.payload.columns.items()} == {
        "review.by.name": ["x", None, None],
        "id": [1, 2, 3],
    }


@pytest.mark.parametrize("extension", ["parquet", "arrow", "jsonl", "csv"])
def test_a_name_with_a_dot_is_taken_as_it_is_first(tmp_path: Path, extension: str) -> None:
    (texts,) = read(write(tmp_path / f"a.{extension}", [{"a.b": "w1"}]), Selection("a.b"))
    assert texts.values == ["w1"]


@pytest.mark.parametrize("extension", ["parquet", "arrow", "jsonl", "csv"])
@pytest.mark.parametrize("selection", [Selection("body"), Selection("text", "key"), Selection("text", None, ("x.y",))])
def test_a_missing_column_is_refused_with_the_columns(tmp_path: Path, extension: str, selection: Selection) -> None:
    path = write(tmp_path / f"a.{extension}", rows_of(3))
    missing = next(name for name in selection.required() if name != "text")
    with pytest.raises(UsageError, match=rf"no column '{missing}'; the columns are: id, text, stars"):
        read(path, selection)


@pytest.mark.parametrize("extension", ["parquet", "arrow", "jsonl", "csv"])
def test_all_columns_can_be_kept(tmp_path: Path, extension: str) -> None:
    (texts,) = read(write(tmp_path / f"a.{extension}", rows_of(3)), Selection("text", "stars", ("*",)))
    assert list(texts.payload.columns) == ["stars", "id", "text"]


@pytest.mark.parametrize("extension", ["parquet", "arrow", "jsonl", "csv"])
def test_partitions_are_columns(tmp_path: Path, extension: str) -> None:
    (tmp_path / "in" / "year=2026").mkdir(parents=True)
    write(tmp_path / "in" / "year=2026" / f"a.{extension}", rows_of(3))
    (texts,) = read(tmp_path / "in", Selection("text", None, ("year",)))
    assert texts.payload.columns["year"].to_pylist() == ["2026"] * 3


def test_invalid_lines_are_errors_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "w1", "id": 1}\n{bad\n\n{"text": 5, "id": 3}\n{"id": 4}\n{"text": null}\n{"text": "\\ud800"}\n'
    )
    (texts,) = read(path, Selection("text", "id"))
    assert texts.values == ["w1", "", "", "", "", ""]
    assert texts.errors[1].startswith("line 2: is not valid JSON")
    assert texts.errors[2] == "the text is a number, not a string"
    assert texts.errors[3] == "line 5: no field 'text'; the fields are: id"
    assert texts.errors[4] == "the text is null"
    assert "lone surrogate" in texts.errors[5]
    assert texts.payload.columns["id"].to_pylist() == [1, None, 3, 4, None, None]


def test_a_kept_field_of_several_types_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = rows_of(3000)
    rows[2500]["stars"] = "many"
    path = write_lines(tmp_path / "a.jsonl", rows)
    pieces = read(path)
    failure = pieces[-1].payload.failure
    assert isinstance(failure, InputError)
    assert "line 2501: field 'stars' is not a value of type double" in str(failure)
    assert "--column-type stars=string" in str(failure)
    pieces = read(path, stars=pa.string())
    assert [value for piece in pieces for value in piece.payload.columns["stars"].to_pylist()][2499:2502] == [
        "1249.5",
        "many",
        "1250.5",
    ]


def test_a_kept_field_of_several_types_in_the_first_rows_is_refused(tmp_path: Path) -> None:
    rows = rows_of(3)
    rows[1]["stars"] = "many"
    with pytest.raises(UsageError, match="field 'stars' has values of several types"):
        read(write_lines(tmp_path / "a.jsonl", rows))


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_damaged_row_group_fails_its_fragment_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of(500), row_group_size=100, compression="none", use_dictionary=False)
    damage_row_group(path, 2)
    pieces = read(path)
    failures = [texts.payload for texts in pieces if texts.payload.failure]
    assert [piece.fragment for piece in failures] == [2]
    assert str(failures[0].failure).startswith(f"{path}, row group 2: is damaged: ")
    whole = [texts for texts in pieces if texts.payload.fragment != 2]
    assert fragments(whole) == [(0, 0, 100), (1, 100, 100), (3, 300, 100), (4, 400, 100)]


def damage_row_group(path: Path, group: int) -> None:
    """Overwrites the page header of the text column."""
    column = pq.ParquetFile(path).metadata.row_group(group).column(1)
    assert column.path_in_schema == "text"
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.parquet", b"", "is not a readable Parquet file"),
        ("a.parquet", b"PAR1 no", "is not a readable Parquet file"),
        ("a.arrow", b"no", "is not readable as arrow"),
    ],
)
def test_a_file_of_another_format_is_an_input_error(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read(tmp_path / name)


def test_a_truncated_compressed_file_fails_after_the_rows_before(tmp_path: Path) -> None:
    chosen = random.Random(0)
    # Numbers that do not compress.
    rows = [{**row, "text": f"{row['text']} {chosen.getrandbits(64)}"} for row in rows_of(5000)]
    path = write(tmp_path / "a.jsonl.gz", rows)
    path.write_bytes(path.read_bytes()[:-2000])
    pieces = read(path)
    assert pieces[-1].payload.failure is not None
    assert "ends early" in str(pieces[-1].payload.failure)
    assert sum(map(len, pieces)) > 1000


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b'{"text": "w1"}\n{"text": "w2"}\n'))

    monkeypatch.setattr(sys, "stdin", Stdin)
    (texts,) = read("-", Selection("text"))
    assert texts.values == ["w1", "w2"]

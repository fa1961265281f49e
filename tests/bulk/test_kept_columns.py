"""Kept columns whose types or values the output cannot hold, or that only some inputs have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import UsageError, local, parts
from polyhead_bulk.answers import Answers
from polyhead_bulk.block import Block
from polyhead_bulk.readers import base, rows
from polyhead_bulk.selection import size_of

from .conftest import RunJob, words


def kept(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Returns columns of the output, as a user reads it."""
    return list(pa.dataset.dataset(folder, format="parquet").to_table().select(list(names)).to_pylist())


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_arrow(path: Path, **columns: pa.Array) -> Path:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def test_a_later_input_may_have_nulls_where_the_first_one_has_none(run_job: RunJob, tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())])
    pq.write_table(pa.table({"id": [1], "text": ["w1"]}, schema), first)
    pq.write_table(pa.table({"id": [2, None], "text": ["w1", "w2"]}), second)
    assert run_job(first, second).is_complete
    assert kept(tmp_path / "out", "id") == [{"id": 1}, {"id": 2}, {"id": None}]


def test_objects_without_keys_are_kept_as_text(run_job: RunJob, tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "w1", "meta": {}, "tags": [{}]}, {"id": 2, "text": "w2"}]
    run_job(write_lines(tmp_path / "a.jsonl", *rows), keep=("*",))
    assert kept(tmp_path / "out", "meta", "tags") == [{"meta": "{}", "tags": "[{}]"}, {"meta": None, "tags": None}]


@pytest.mark.parametrize("meta", [{}, None, {"a": [{}]}], ids=str)
def test_objects_without_keys_fit_the_objects_of_the_first_input(
    run_job: RunJob, tmp_path: Path, meta: dict[str, Any] | None
) -> None:
    first = write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "w1", "meta": {"a": [{"x": 1}]}})
    rows: list[dict[str, Any]] = [{"id": row, "text": "w1", "meta": meta} for row in range(2, 1100)]
    rows[-1]["meta"] = {"a": [{"x": 2}]}
    last = write_lines(tmp_path / "b.jsonl", *rows)
    assert run_job(first, last, keep=("meta",), part_rows=2000).failures == []
    values = [row["meta"] for row in kept(tmp_path / "out", "meta")]
    nulls = {"{}": {"a": None}, "None": None}.get(str(meta), {"a": [{"x": None}]})
    assert [values[0], values[1], values[-1]] == [{"a": [{"x": 1}]}, nulls, {"a": [{"x": 2}]}]


@pytest.mark.parametrize(
    "kind", [pa.struct([]), pa.month_day_nano_interval(), pa.run_end_encoded(pa.int32(), pa.string())], ids=str
)
def test_a_type_that_parquet_does_not_have_is_refused_before_the_start(
    run_job: RunJob, tmp_path: Path, kind: pa.DataType
) -> None:
    path = write_arrow(tmp_path / "a.arrow", text=pa.array(["w1"]), odd=pa.nulls(1, kind))
    with pytest.raises(UsageError, match=r"column 'odd' has type .*, which Parquet does not have: use --output-format"):
        run_job(path, id=None, keep=("odd",))
    assert not (tmp_path / "out").exists()
    assert run_job(path, id=None, keep=("odd",), output_format="jsonl").is_complete


def test_structs_whose_fields_are_never_null_are_kept(run_job: RunJob, tmp_path: Path) -> None:
    kind = pa.struct([pa.field("a", pa.int64(), nullable=False)])
    run_job(
        write_arrow(tmp_path / "a.arrow", text=pa.array(["w1"]), meta=pa.array([{"a": 1}], kind)), id=None, keep=("*",)
    )
    assert kept(tmp_path / "out", "meta") == [{"meta": {"a": 1}}]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_values_that_cannot_be_written_fail_their_part_alone(
    run_job: RunJob, tmp_path: Path, output_format: str
) -> None:
    ids = pa.array([*range(1500), *[10**18] * 1500], pa.timestamp("s"))
    bad = write_arrow(tmp_path / "b.arrow", text=pa.array(words(3000)), id=ids)
    last = write_arrow(tmp_path / "c.arrow", text=pa.array(["w1"]), id=pa.array([5], pa.timestamp("s")))
    summary = run_job(bad, last, part_rows=1400, output_format=output_format)
    assert not summary.is_complete
    assert len(summary.failures) == 2
    assert summary.failures[0].startswith(f"{bad}, rows 1,401 to ")
    assert f"a kept column cannot be written as {output_format}: " in summary.failures[0]
    parts = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert parts == [f"part-00000-00000.{output_format}", f"part-00001-00000.{output_format}"]


def test_keys_of_lists_of_the_first_input_are_not_dropped(run_job: RunJob, tmp_path: Path) -> None:
    kind = pa.large_list(pa.struct([("x", pa.int64())]))
    first = write_arrow(tmp_path / "a.arrow", text=pa.array(["w1"]), meta=pa.array([[{"x": 1}]], kind))
    values: list[Any] = [[{}], *[None] * 1100, [{"y": "lost"}]]
    last = write_lines(tmp_path / "b.jsonl", *({"text": "w1", "meta": meta} for meta in values))
    (failure,) = run_job(first, last, id=None, keep=("meta",)).failures
    assert failure.startswith(f"{last}, line 1102: field 'meta' is not a value of type large_list<")


def test_long_values_do_not_change_which_rows_decide(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PIECE_CHARACTERS", 2**14)
    lines = [{"id": row, "text": "w1", "html": "x" * 1000, "stars": row} for row in range(1000)]
    path = write_lines(tmp_path / "a.jsonl", *lines, {"id": 1000, "text": "w1", "stars": 0.5})
    with path.open("a") as file:
        file.write("{bad\n")
    summary = run_job(path, keep=("html", "stars"), part_rows=2000)
    assert (summary.rows, summary.errors, summary.failures) == (1002, 1, [])
    *_, last, invalid = kept(tmp_path / "out", "stars", "error")
    assert last == {"stars": 0.5, "error": None}
    assert invalid["error"].startswith("line 1002: is not valid JSON")


def test_keys_that_the_first_rows_do_not_have_are_not_dropped(run_job: RunJob, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": row, "text": "w1", "meta": {"a": [{"x": 1}]}} for row in range(1100)]
    rows[1050]["meta"] = {"a": [{"x": 1, "y": "lost"}]}
    path = write_lines(tmp_path / "a.jsonl", *rows)
    (failure,) = run_job(path, keep=("meta",), part_rows=600).failures
    assert failure.startswith(f"{path}, line 1051: field 'meta' is not a value of type struct<a: list<")
    assert "--column-type meta=string" in failure
    assert kept(tmp_path / "out", "id") == [{"id": row} for row in range(600)]
    (tmp_path / "out").rename(tmp_path / "other")
    assert run_job(path, keep=("meta",), column_types={"meta": pa.string()}).is_complete
    assert kept(tmp_path / "out", "meta")[1050] == {"meta": '{"a": [{"x": 1, "y": "lost"}]}'}


@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_fields_of_structs_that_the_first_input_does_not_have_are_not_dropped(
    run_job: RunJob, tmp_path: Path, extension: str
) -> None:
    paths = []
    for name, meta in (("a", {"a": 1}), ("b", {"a": 2, "b": 3}), ("c", {"a": 4})):
        row = {"id": 1, "text": "w1", "meta": meta}
        paths.append(tmp_path / f"{name}.{extension}")
        if extension == "jsonl":
            write_lines(paths[-1], row)
        else:
            pq.write_table(pa.Table.from_pylist([row]), paths[-1])
    (failure,) = run_job(*paths, keep=("meta",)).failures
    assert failure.startswith(
        f"{paths[1]}: column 'meta' has type struct<a: int64, b: int64>; the first input has struct"
    )
    assert kept(tmp_path / "out", "meta") == [{"meta": {"a": 1}}, {"meta": {"a": 4}}]


def test_a_field_that_is_first_seen_later_is_an_error_or_named(run_job: RunJob, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": row, "text": "w1"} for row in range(1100)]
    rows[1050]["late"] = 5
    path = write_lines(tmp_path / "a.jsonl", *rows)
    (failure,) = run_job(path, keep=("*",)).failures
    assert failure.startswith(f"{path}, line 1051: field 'late' is not in the first rows, which decide what --keep '*'")
    assert "--column-type late=string" in failure
    for output, keep in (("first", ("*",)), ("second", ("late",))):
        (tmp_path / "out").rename(tmp_path / output)
        assert run_job(path, keep=keep, column_types={"late": pa.string()}).is_complete
        assert kept(tmp_path / "out", "late")[1049:1052] == [{"late": None}, {"late": "5"}, {"late": None}]
    with pytest.raises(UsageError, match="no column 'body'"):
        run_job(path, text="body", column_types={"body": pa.string()})


def test_a_column_of_a_later_input_alone_is_an_error_if_all_are_kept(run_job: RunJob, tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["w1"]}), first)
    pq.write_table(pa.table({"id": [2], "text": ["w1"], "late": ["x"]}), second)
    (failure,) = run_job(first, second, keep=("*",)).failures
    assert failure.startswith(f"{second}: has a column 'late', which the first input does not have: name each column")


@pytest.mark.parametrize("keep", ["*", "stars"])
def test_the_first_input_with_rows_decides_the_columns(run_job: RunJob, tmp_path: Path, keep: str) -> None:
    empty = write_lines(tmp_path / "a.jsonl")
    invalid = tmp_path / "b.jsonl"
    invalid.write_text("{bad\n")
    last = write_lines(tmp_path / "c.jsonl", {"id": 1, "text": "w1", "stars": 5})
    summary = run_job(empty, invalid, last, keep=(keep,))
    assert (summary.rows, summary.errors, summary.is_complete) == (2, 1, True)
    assert kept(tmp_path / "out", "id", "stars") == [{"id": None, "stars": None}, {"id": 1, "stars": 5}]


def test_json_lines_keep_integers_of_lists_and_binary_values(run_job: RunJob, tmp_path: Path) -> None:
    big = 2**53 + 1
    columns = {"text": ["w1", "w2"], "ids": [[big, None], [big]], "raw": [b"\x00\xff", None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    run_job(tmp_path / "a.parquet", id=None, keep=("ids", "raw"), output_format="jsonl")
    lines = (tmp_path / "out/part-00000-00000.jsonl").read_text().splitlines()
    rows = [{name: json.loads(line)[name] for name in ("ids", "raw")} for line in lines]
    assert rows == [{"ids": [big, None], "raw": "AP8="}, {"ids": [big], "raw": None}]


def test_large_kept_columns_limit_how_many_rows_are_held(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = "x" * 10_000
    path = write_lines(tmp_path / "a.jsonl", *({"id": row, "text": "w1", "html": html} for row in range(1000)))
    blocks: list[int] = []

    def block(parts: list[Any], *arguments: Any) -> Any:
        blocks.append(sum(map(len, parts)))
        return Block(parts, *arguments)

    monkeypatch.setattr(local, "Block", block)
    monkeypatch.setattr(local, "_MAX_BLOCK_SIZE", 2**20)
    monkeypatch.setattr(rows, "PIECE_CHARACTERS", 2**19)
    monkeypatch.setattr(parts, "_ParquetEncoder", type("Small", (parts._ParquetEncoder,), {"_BYTES": 2**21}))
    run_job(path, keep=("html",), part_rows=1000)
    assert max(blocks) < 120
    file = pq.ParquetFile(tmp_path / "out/part-00000-00000.parquet")
    assert [file.metadata.num_rows, file.metadata.num_row_groups > 3] == [1000, True]


@pytest.mark.parametrize("nest", [lambda column: column, lambda column: pa.StructArray.from_arrays([column], ["a"])])
@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_the_size_of_rows_is_theirs_alone(kind: pa.DataType, nest: Callable[[pa.Array], pa.Array]) -> None:
    column = nest(pa.array([f"{row:0100}" for row in range(1000)]).cast(kind))
    assert column.slice(10, 10).nbytes > 10**5
    assert 40 <= size_of(column.slice(10, 10)) <= 2000
    lists = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), column)
    assert size_of(pa.chunked_array([lists.slice(10, 5), lists.slice(500, 5)])) <= 2000


def test_errors_of_answers_and_of_memory_are_not_those_of_a_kept_column(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "w1"})
    for target, name, error in (
        (Answers, "columns", ValueError("a defect")),
        (parts._ParquetEncoder, "write", pa.ArrowMemoryError("malloc")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, Mock(side_effect=error))
            with pytest.raises(type(error), match=str(error)):
                run_job(path)


def test_slices_of_large_buffers_do_not_limit_how_many_rows_are_held(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4 * base.PIECE_ROWS
    html = pa.array([f"{row:0100}" for row in range(count)], pa.string_view())
    path = write_arrow(tmp_path / "a.arrow", text=pa.array(["w1"] * count), html=html)
    payloads: list[int] = []

    def block(parts: list[Any], *arguments: Any) -> Any:
        payloads.extend(part.payload_bytes for part in parts)
        return Block(parts, *arguments)

    monkeypatch.setattr(local, "Block", block)
    monkeypatch.setattr(parts, "_ParquetEncoder", type("Small", (parts._ParquetEncoder,), {"_BYTES": 2**20}))
    run_job(path, id=None, keep=("html",), part_rows=count)
    assert sum(payloads) < 2 * html.nbytes
    assert pq.ParquetFile(tmp_path / "out/part-00000-00000.parquet").metadata.num_row_groups == 1

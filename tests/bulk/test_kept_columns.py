"""Kept columns whose types or values the output cannot hold, or that only some inputs have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import UsageError

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


@pytest.mark.parametrize("kind", [pa.struct([]), pa.month_day_nano_interval()], ids=str)
def test_a_type_that_parquet_does_not_have_is_refused_before_the_start(
    run_job: RunJob, tmp_path: Path, kind: pa.DataType
) -> None:
    path = write_arrow(tmp_path / "a.arrow", text=pa.array(["w1"]), odd=pa.nulls(1, kind))
    with pytest.raises(UsageError, match=r"column 'odd' has type .*, which Parquet does not have: use --output-format"):
        run_job(path, id=None, keep=("odd",))
    assert not (tmp_path / "out").exists()
    assert run_job(path, id=None, keep=("odd",), output_format="jsonl").is_complete


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

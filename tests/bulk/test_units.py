"""The units of a job, made one by one as workers of a cluster make them, give the output of one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from polyhead_bulk.job import Job
from polyhead_bulk.manifest import claim
from polyhead_bulk.parts import RECORDS, PartRecord, read_records
from polyhead_bulk.plan import Plan, Progress, Unit, describe
from polyhead_bulk.run_files import RunFiles
from polyhead_bulk.selection import Selection
from polyhead_bulk.sources import find_sources
from polyhead_bulk.units import make_unit, units_of

from .conftest import MakeAnnotator, words, write_parquet

ROWS = 100


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A Parquet file, whose fragments can be read alone, one of JSON Lines, and an empty one of each."""
    folder = tmp_path / "in"
    write_parquet(folder / "a.parquet", list(words(ROWS)), row_group_size=30)
    write_parquet(folder / "b.parquet", [])
    lines = [json.dumps({"id": ROWS + row, "text": text, "stars": 0.5}) for row, text in enumerate(words(ROWS, seed=1))]
    (folder / "c.jsonl").write_text("\n".join(lines))
    (folder / "d.jsonl").write_text("")
    return folder


def job_of(tables: Path, output: Path, annotator: MakeAnnotator) -> Job:
    plan = Plan(
        sources=find_sources([str(tables)], output),
        selection=Selection("text", "id", ()),
        output=output,
        part_rows=7,
    )
    return Job(plan, annotator())


def claimed(tables: Path, output: Path, annotator: MakeAnnotator) -> Job:
    job = job_of(tables, output, annotator)
    claim(output, describe(job.plan, job.layout, job.fields, []))
    return job


def output_of(folder: Path) -> pa.Table:
    return pa.dataset.dataset(folder, format="parquet").to_table()


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_units_together_are_the_job(workers: int, tables: Path, tmp_path: Path, make_annotator: MakeAnnotator) -> None:
    job_of(tables, tmp_path / "one", make_annotator).run()
    output = tmp_path / "units"
    units = units_of(claimed(tables, output, make_annotator), workers)
    worker = job_of(tables, output, make_annotator)
    # The order in which workers finish does not matter.
    summaries = [make_unit(worker, unit) for unit in reversed(units)]
    assert output_of(output).equals(output_of(tmp_path / "one"))
    assert sum(one.rows for one in summaries) == 2 * ROWS
    records = read_records(output, "parquet")
    assert sum(one.parts for one in summaries) == len(records)  # none was made twice
    assert Progress(worker.plan, records).is_complete()
    finished = claimed(tables, output, make_annotator)
    finished.progress = Progress(finished.plan, records)
    assert units_of(finished, workers) == []


def test_a_repeated_unit_makes_what_is_missing(tables: Path, tmp_path: Path, make_annotator: MakeAnnotator) -> None:
    output = tmp_path / "out"
    job = claimed(tables, output, make_annotator)
    unit = Unit(2, 1, 3)
    assert make_unit(job, unit).parts == 5
    assert sorted(read_records(output, "parquet")) == [(2, fragment) for fragment in (1, 4, 7, 10, 13)]
    (output / "part-00002-00007.parquet").unlink()
    assert make_unit(job, unit).parts == 1
    assert len(read_records(output, "parquet")) == 5


def test_a_file_that_is_read_from_its_beginning_is_divided_only_as_far_as_workers_need(
    tables: Path, tmp_path: Path, make_annotator: MakeAnnotator
) -> None:
    job = claimed(tables, tmp_path / "out", make_annotator)
    for workers, step in ((1, 1), (2, 1), (3, 2), (8, 4)):
        assert {unit.step for unit in units_of(job, workers) if unit.source >= 2} == {step}


def test_a_damaged_file_is_reported_by_its_unit(tables: Path, tmp_path: Path, make_annotator: MakeAnnotator) -> None:
    output = tmp_path / "out"
    job = claimed(tables, output, make_annotator)
    (tables / "b.parquet").write_bytes(b"damaged")
    (unit,) = [one for one in units_of(job, 1) if one.source == 1]
    worker = job_of(tables, output, make_annotator)
    assert "b.parquet" in make_unit(worker, unit).failures[0]


def test_files_of_a_run_do_not_outlive_it(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir()
    run, worker = RunFiles(tmp_path, "token"), RunFiles(tmp_path, "token")
    other = RunFiles(tmp_path, "other")
    assert not worker.is_here()
    with run:
        assert worker.is_here()
        assert not other.is_here()
        assert not worker.is_stopping()
        run.stop()
        assert worker.is_stopping()
        assert [worker.count_attempt(Unit(0, 1)) for _ in range(3)] == [1, 2, 3]
        assert worker.count_attempt(Unit(0, 2)) == 1
        worker.forget(Unit(0, 1))
        assert worker.count_attempt(Unit(0, 1)) == 1
    assert list((tmp_path / RECORDS).iterdir()) == []


def test_a_part_may_be_added_while_another_thread_asks_what_is_wanted(
    tables: Path, tmp_path: Path, make_annotator: MakeAnnotator
) -> None:
    class Slow(PartRecord):
        def __getattribute__(self, name: str) -> Any:
            if name == "is_last":
                progress.add(dataclasses.replace(record, fragment=record.fragment + 7))
            return super().__getattribute__(name)

    record = PartRecord("part", 0, 0, 0, 7, 0, 1, "", is_last=False)
    slow = Slow(**vars(dataclasses.replace(record, fragment=1)))
    progress = Progress(job_of(tables, tmp_path / "out", make_annotator).plan, {record.key: record, slow.key: slow})
    want = progress.want(0)
    assert [want(fragment) for fragment in range(3)] == [False, False, True]
    assert len(progress.records()) == 3

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from polyhead_bulk import OutputError, ResumeError, RowError, UsageError, files
from polyhead_bulk.parts import read_records
from polyhead_bulk.selection import Selection

from .conftest import MakeAnnotator, RunJob, embeddings, expected_embeddings, make_job, words, write_parquet


def output_of(folder: Path) -> pa.Table:
    """Returns the whole output as a user reads it: the folder is one data set."""
    return pa.dataset.dataset(folder, format="parquet").to_table()


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "_manifest.json").read_bytes()))


def part_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def test_the_output_has_the_rows_of_the_input_in_order(run_job: RunJob, tmp_path: Path) -> None:
    texts = words(1050)
    first = write_parquet(tmp_path / "in/a.parquet", list(texts[:730]), row_group_size=90)
    second = write_parquet(tmp_path / "in/b.parquet", list(texts[730:]), first=730)
    summary = run_job(first, second, keep=("stars",))
    assert (summary.rows, summary.errors, summary.failures, summary.is_complete) == (1050, 0, [], True)
    table = output_of(tmp_path / "out")
    assert table.column_names[:3] == ["id", "stars", "embedding"]
    assert table["id"].to_pylist() == list(range(1050))
    np.testing.assert_array_equal(embeddings(table), expected_embeddings(texts))
    manifest = manifest_of(tmp_path / "out")
    assert manifest["complete"] is True
    assert [part["name"] for part in manifest["parts"]] == part_names(tmp_path / "out")
    for part in manifest["parts"]:
        content = (tmp_path / "out" / part["name"]).read_bytes()
        assert (part["size"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["inputs"][0]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_the_schema_states_model_and_options(run_job: RunJob, tmp_path: Path) -> None:
    run_job(write_parquet(tmp_path / "a.parquet", ["w1"]))
    metadata = pq.read_schema(tmp_path / "out/part-00000-00000.parquet").metadata
    assert metadata[b"polyhead.digest"] == b"d" * 64
    assert metadata[b"polyhead.embedding_space"] == b"e" * 16
    assert metadata[b"polyhead.truncation"] == b"truncate"
    assert json.loads(metadata[b"polyhead.heads"]) == {"topic": "t" * 16, "sentiment": "s" * 16}


def test_json_lines_are_written_with_the_same_values(run_job: RunJob, tmp_path: Path) -> None:
    texts: list[str | None] = [*words(130), None]
    path = write_parquet(tmp_path / "a.parquet", texts)
    run_job(path, output_format="jsonl")
    assert part_names(tmp_path / "out") == ["part-00000-00000.jsonl", "part-00000-00001.jsonl"]
    lines = "".join((tmp_path / "out" / name).read_text() for name in part_names(tmp_path / "out")).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == list(range(131))
    assert [row["embedding"] for row in rows[:-1]] == expected_embeddings(words(130)).tolist()
    assert rows[-1] == {**dict.fromkeys(rows[-1]), "id": 130, "error": "the text is null"}


def test_a_complete_job_computes_nothing_again(run_job: RunJob, tmp_path: Path, engine: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(words(250)))
    run_job(path)
    batches = len(engine.batch_shapes)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    summary = run_job(path)
    assert (summary.rows, summary.parts, summary.kept_parts, summary.is_complete) == (0, 0, 3, True)
    assert len(engine.batch_shapes) == batches
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}


@pytest.mark.parametrize("extension", ["parquet", "jsonl"])
def test_missing_and_damaged_parts_alone_are_made_again(run_job: RunJob, tmp_path: Path, extension: str) -> None:
    texts = words(450)
    path = tmp_path / f"a.{extension}"
    if extension == "parquet":
        write_parquet(path, list(texts))
    else:
        path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    run_job(path)
    expected = output_of(tmp_path / "out")
    out = tmp_path / "out"
    (out / "part-00000-00001.parquet").unlink()
    (out / "part-00000-00003.parquet").write_bytes(b"torn")
    (out / "_parts/part-00000-00004.json").write_bytes(b"{")
    summary = run_job(path)
    assert (summary.rows, summary.parts, summary.kept_parts, summary.is_complete) == (250, 3, 2, True)
    assert output_of(out).equals(expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"part_rows": 50}, "option part_rows: 100 there, 50 now"),
        ({"text": "other"}, "option text_column"),
        ({"keep": ("stars",)}, "option keep"),
        ({"output_format": "jsonl"}, "output format"),
        ({"limit": 3}, "option limit: null there, 3 now"),
    ],
)
def test_other_options_are_refused_by_name(run_job: RunJob, tmp_path: Path, change: Any, named: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["w1"], "other": ["w2"], "stars": [1.0]}), path)
    run_job(path)
    before = (tmp_path / "out/_manifest.json").read_bytes()
    with pytest.raises(ResumeError, match=named):
        run_job(path, **change)
    assert (tmp_path / "out/_manifest.json").read_bytes() == before
    assert run_job(path).kept_parts == 1


def test_other_model_and_answer_options_are_refused_by_name(
    make_annotator: MakeAnnotator, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from polyhead_bulk import annotator

    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    make_job(make_annotator(), tmp_path / "out", path).run()
    with pytest.raises(ResumeError, match='option embedding_encoding: "float32" there, "int8" now'):
        make_job(make_annotator(embedding_encoding="int8"), tmp_path / "out", path).run()
    with pytest.raises(ResumeError, match='option prompt: null there, "query" now'):
        make_job(make_annotator(prompt="query"), tmp_path / "out", path).run()
    other = dataclasses.replace(model, source=dataclasses.replace(model.source, digest="f" * 64))
    monkeypatch.setattr(annotator, "load_model", lambda _: other)
    with pytest.raises(ResumeError, match="model model_id"):
        make_job(make_annotator(), tmp_path / "out", path).run()


def test_an_option_that_an_earlier_release_did_not_know_is_no_difference(run_job: RunJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    run_job(path)
    job = manifest_of(tmp_path / "out")
    del job["options"]["novelty"], job["options"]["prediction_sets"]
    (tmp_path / "out/_manifest.json").write_text(json.dumps(job))
    assert run_job(path).kept_parts == 1


def test_changed_inputs_are_refused_by_name(run_job: RunJob, tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", ["w1"])
    second = write_parquet(tmp_path / "b.parquet", ["w2"])
    run_job(first, second)
    with pytest.raises(ResumeError, match="inputs: 2 there, 1 now"):
        run_job(first)
    write_parquet(second, ["w3"])
    with pytest.raises(ResumeError, match=rf"input {second}: has changed since"):
        run_job(first, second)
    write_parquet(second, ["w2"])  # the same content again, with another time
    assert run_job(first, second).kept_parts == 2


def test_a_folder_with_other_files_is_refused(run_job: RunJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.DS_Store").touch()
    (tmp_path / "out/lost+found").mkdir()
    (tmp_path / "out/thesis.txt").touch()
    with pytest.raises(ResumeError, match=r"is not empty and has no _manifest.json: it contains thesis.txt"):
        run_job(path)
    (tmp_path / "out/thesis.txt").unlink()
    assert run_job(path).rows == 1


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_make_the_parts_of_one_job(run_job: RunJob, tmp_path: Path, shards: int) -> None:
    texts = words(900)
    inputs = []
    for number in range(3):
        rows = [{"id": one, "text": texts[one]} for one in range(300 * number, 300 * number + 300)]
        inputs.append(tmp_path / f"{number}.jsonl")
        inputs[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    summaries = [run_job(*inputs, part_rows=70, shard=shard, shards=shards) for shard in range(shards)]
    assert sum(summary.rows for summary in summaries) == 900
    assert all(summary.rows for summary in summaries)
    assert [summary.is_complete for summary in summaries] == [False] * (shards - 1) + [True]
    assert manifest_of(tmp_path / "out")["complete"]
    table = output_of(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(900))
    # Without shards the same job continues, and finds nothing to do.
    assert run_job(*inputs, part_rows=70).rows == 0


@pytest.mark.parametrize("limit", [1, 99, 100, 150, 300, 460])
def test_a_limit_counts_rows_of_all_inputs_also_after_a_crash(run_job: RunJob, tmp_path: Path, limit: int) -> None:
    texts = words(500)
    inputs = [
        write_parquet(tmp_path / "a.parquet", list(texts[:250])),
        write_parquet(tmp_path / "b.parquet", list(texts[250:]), first=250),
    ]
    summary = run_job(*inputs, limit=limit)
    assert (summary.rows, summary.is_complete) == (limit, True)
    out = tmp_path / "out"
    assert output_of(out)["id"].to_pylist() == list(range(limit))
    for lost in (part_names(out)[0], part_names(out)[-1]):
        (out / lost).unlink()
        run_job(*inputs, limit=limit)
        assert output_of(out)["id"].to_pylist() == list(range(limit))


def test_an_unreadable_input_does_not_stop_the_others(run_job: RunJob, tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "a.parquet", list(words(120)))
    bad = tmp_path / "b.parquet"
    bad.write_bytes(b"PAR1 damaged")
    other = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["w1"]}), other)
    last = write_parquet(tmp_path / "d.parquet", ["w1"], first=120)
    summary = run_job(good, bad, other, last)
    assert summary.rows == 121
    assert not summary.is_complete
    assert [failure.split(":")[0] for failure in summary.failures] == [str(bad), str(other)]
    assert "no column 'text'; the columns are: id, body" in summary.failures[1]
    assert manifest_of(tmp_path / "out")["failures"] == summary.failures
    assert output_of(tmp_path / "out")["id"].to_pylist() == list(range(121))


def test_a_column_of_another_type_is_converted_or_named(run_job: RunJob, tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", ["w1"])
    second, third = tmp_path / "b.parquet", tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": pa.array([7], pa.int16()), "text": ["w2"]}), second)
    pq.write_table(pa.table({"id": ["seven"], "text": ["w3"]}), third)
    summary = run_job(first, second, third)
    assert output_of(tmp_path / "out")["id"].to_pylist() == [0, 7]
    (failure,) = summary.failures
    assert failure.startswith(f"{third}: column 'id' has type string; the first input has int64")


@pytest.mark.parametrize("rows", [0, 1])
def test_inputs_without_rows_have_a_part_without_rows(run_job: RunJob, tmp_path: Path, rows: int) -> None:
    empty = write_parquet(tmp_path / "a.parquet", [])
    other = write_parquet(tmp_path / "b.parquet", ["w1"] * rows)
    summary = run_job(empty, other)
    assert (summary.rows, summary.is_complete) == (rows, True)
    assert output_of(tmp_path / "out").num_rows == rows
    assert "embedding" in output_of(tmp_path / "out").column_names


def test_rows_without_an_answer_are_counted_or_end_the_job(run_job: RunJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*words(120), None, "w1"])
    with pytest.raises(RowError, match=rf"{path}, row 121: the text is null; --on-error null goes on"):
        run_job(path, on_error="fail")
    assert part_names(tmp_path / "out") == ["part-00000-00000.parquet"]
    summary = run_job(path)
    assert (summary.rows, summary.errors, summary.kept_parts) == (22, 1, 1)
    assert manifest_of(tmp_path / "out")["errors"] == 1


def test_a_kept_column_must_not_have_the_name_of_an_answer(run_job: RunJob, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["w1"], "tokens": [3]}), path)
    with pytest.raises(UsageError, match="the kept column 'tokens'"):
        run_job(path, keep=("tokens",))
    assert not (tmp_path / "out").exists()


class FullDisk:
    """Fails the writes of part files after so many bytes."""

    def __init__(self, limit: int, write: Callable[[Any, bytes], int]) -> None:
        self.left = limit
        self._write = write

    def __call__(self, file: Any, content: bytes) -> int:
        if file.path.name.startswith("part-") and file.path.suffix == ".parquet":
            self.left -= len(content)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(file, content)


def test_a_full_disk_leaves_whole_parts_and_says_how_to_go_on(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(words(450)))
    with monkeypatch.context() as patched:
        write = files.AtomicFile.write
        disk = FullDisk(12_000, write)
        patched.setattr(files.AtomicFile, "write", lambda *arguments: disk(*arguments))  # noqa: PLW0108  a function becomes a method
        with pytest.raises(OutputError, match=r"No space left on device: free space there; .* continues after them"):
            run_job(path)
    out = tmp_path / "out"
    complete = len(read_records(out, "parquet"))
    assert 0 < complete < 5
    assert len(part_names(out)) == complete
    assert not [one for one in out.iterdir() if ".tmp-" in one.name]
    summary = run_job(path)
    assert (summary.kept_parts, summary.is_complete) == (complete, True)
    assert output_of(out)["id"].to_pylist() == list(range(450))


def test_an_unwritable_folder_is_an_output_error(run_job: RunJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=f"{tmp_path}/out: cannot be written"):
        run_job(path)


def test_stopping_completes_the_part_that_is_being_written(make_annotator: MakeAnnotator, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(words(5000)))
    job = make_job(make_annotator(), tmp_path / "out", path, part_rows=1500)
    job.on_rows = lambda _: job.stop()
    summary = job.run()
    assert (summary.is_stopped, summary.is_complete, summary.parts) == (True, False, 1)
    assert part_names(tmp_path / "out") == ["part-00000-00000.parquet"]
    assert not [one for one in (tmp_path / "out").iterdir() if ".tmp-" in one.name]
    assert make_job(make_annotator(), tmp_path / "out", path, part_rows=1500).run().kept_parts == 1
    assert output_of(tmp_path / "out")["id"].to_pylist() == list(range(5000))


def test_standard_input_cannot_continue(make_annotator: MakeAnnotator, tmp_path: Path, monkeypatch: Any) -> None:
    import io
    import sys

    class Stdin:
        def __init__(self) -> None:
            self.buffer = io.BufferedReader(io.BytesIO(b'{"text": "w1"}\n'))

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert make_job(make_annotator(), tmp_path / "out", "-", id=None).run().rows == 1
    monkeypatch.setattr(sys, "stdin", Stdin())
    with pytest.raises(ResumeError, match="holds parts of an earlier standard input"):
        make_job(make_annotator(), tmp_path / "out", "-", id=None).run()


@pytest.mark.parametrize(
    "fields", [{"shard": 2, "shards": 2}, {"shard": 0, "shards": 2, "limit": 3}, {"shard": -1, "shards": 1}]
)
def test_contradicting_options_are_refused(run_job: RunJob, tmp_path: Path, fields: Any) -> None:
    with pytest.raises(UsageError, match="--shard"):
        run_job(write_parquet(tmp_path / "a.parquet", ["w1"]), **fields)


def test_selection_names_each_column_once() -> None:
    assert Selection("text", "id", ("id", "a", "*")).kept(["a", "id", "text"]) == ("id", "a", "text")

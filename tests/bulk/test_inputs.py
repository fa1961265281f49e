"""Inputs that cannot be read or have odd names, and a job that is stopped before it has read them all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from polyhead_bulk import ResumeError, sources
from polyhead_bulk.model_source import archive_of
from polyhead_bundle import sha256_of

from .conftest import MakeAnnotator, RunJob, make_job, write_parquet


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "_manifest.json").read_bytes()))


def test_a_file_that_cannot_be_read_fails_alone_and_is_made_later(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_parquet(tmp_path / "a.parquet", ["w1"])
    second = write_parquet(tmp_path / "b.parquet", ["w2"])

    def refuse(path: Path) -> str:
        if path == second:
            raise PermissionError(13, "Permission denied", str(path))
        return sha256_of(path)

    content = second.read_bytes()
    second.write_bytes(b"")
    with monkeypatch.context() as patched:
        patched.setattr(sources, "sha256_of", refuse)
        summary = run_job(first, second)
    assert (summary.rows, len(summary.failures)) == (1, 1)
    assert [bool(one["sha256"]) for one in manifest_of(tmp_path / "out")["inputs"]] == [True, False]
    second.write_bytes(content)
    summary = run_job(first, second)
    assert (summary.rows, summary.is_complete) == (1, True)
    # Files with parts must not have changed.
    write_parquet(second, ["w3"])
    with pytest.raises(ResumeError, match=r"b\.parquet: has changed since"):
        run_job(first, second)


def refuse(path: Path) -> str:
    raise PermissionError(13, "Permission denied", str(path))


def test_the_digest_of_another_process_is_kept(
    make_annotator: MakeAnnotator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    digest = sha256_of(path)
    with monkeypatch.context() as patched:
        patched.setattr(sources, "sha256_of", refuse)
        first = make_job(make_annotator(), tmp_path / "out", path)
        run_parts = first.make_parts

        def other_process_first() -> None:
            patched.setattr(sources, "sha256_of", sha256_of)
            other = make_job(make_annotator(), tmp_path / "out", path)
            patched.setattr(other, "make_parts", check)
            other.run()
            run_parts()

        def check() -> None:
            assert manifest_of(tmp_path / "out")["inputs"][0]["sha256"] == digest

        patched.setattr(first, "make_parts", other_process_first)
        assert first.run().is_complete
    check()


def test_a_digest_is_not_that_of_a_later_file(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "w1"}\n')
    run_job(path)
    path.write_text('{"id": 1, "text": "w2"}\n')
    os.utime(path, ns=(1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(sources, "sha256_of", refuse)
        run_job(path)
    with pytest.raises(ResumeError, match=r"a\.jsonl: has changed since"):
        run_job(path)


def test_a_name_that_is_not_utf_8_is_written(run_job: RunJob, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9.jsonl")
    Path(path).write_text('{"id": 1, "text": "w1"}\n')
    assert run_job(path).is_complete
    assert manifest_of(tmp_path / "out")["inputs"][0]["name"] == path
    assert run_job(path).kept_parts == 1


def test_a_foreign_folder_is_left_as_it_is(run_job: RunJob, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["w1"])
    (tmp_path / "out").mkdir()
    for name in (".part-0-1.parquet.tmp-00ff", "thesis.txt"):
        (tmp_path / "out" / name).touch()
    with pytest.raises(ResumeError, match=r"thesis.txt"):
        run_job(path)
    assert (tmp_path / "out/.part-0-1.parquet.tmp-00ff").exists()


def test_a_job_can_be_stopped_while_its_inputs_are_hashed(
    make_annotator: MakeAnnotator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_parquet(tmp_path / f"{name}.parquet", ["w1"]) for name in "abc"]
    job = make_job(make_annotator(), tmp_path / "out", *paths)
    hashed: list[Path] = []

    def digest(path: Path) -> str:
        hashed.append(path)
        job.stop()
        return "0" * 64

    monkeypatch.setattr(sources, "sha256_of", digest)
    assert job.run().is_stopped
    assert hashed == paths[:1]
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_is_a_link_is_archived_with_its_signature(tmp_path: Path) -> None:
    bundle = tmp_path / "v1"
    bundle.mkdir()
    (bundle / "bundle.json").touch()
    (tmp_path / "v1.sig").touch()
    (tmp_path / "current").symlink_to("v1")
    with tarfile.open(fileobj=io.BytesIO(archive_of(tmp_path / "current"))) as archive:
        assert archive.getnames() == ["bundle", "bundle/bundle.json", "bundle.sig"]
        assert archive.getmember("bundle").isdir()

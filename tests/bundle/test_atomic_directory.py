"""Directories that appear whole or not at all, whatever became of the writers before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from polyhead_bundle.atomic_directory import recover, replace_directory, staging_folder


def directory(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    directory(tmp_path / "run", "new")
    directory(tmp_path / ".run.tmp-abcdefgh", "half")
    directory(tmp_path / ".run.tmp-ab_defg1.old", "old")
    recover(tmp_path / "run")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "new"


@pytest.mark.parametrize("staged", [True, False], ids=["between the renames", "and the new one was deleted"])
def test_old_directory_comes_back_after_a_kill_between_the_renames(tmp_path: Path, staged: bool) -> None:
    if staged:
        directory(tmp_path / ".run.tmp-abcdefgh", "new")
    directory(tmp_path / ".run.tmp-abcdefgh.old", "old")
    recover(tmp_path / "run")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "old"


def test_next_writer_recovers_first(tmp_path: Path) -> None:
    directory(tmp_path / ".run.tmp-abcdefgh", "new")
    directory(tmp_path / ".run.tmp-abcdefgh.old", "old")
    with staging_folder(tmp_path / "run") as staging:
        assert names(tmp_path) == [staging.name, "run"]


def test_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "run") as staging:
        (staging / "file").write_text("new")
        retired = directory(staging.with_name(staging.name + ".old"), "old")
        recover(tmp_path / "run")
        assert names(tmp_path) == sorted([staging.name, retired.name])
        retired.rename(tmp_path / "run")
        replace_directory(staging, tmp_path / "run")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "new"


def test_neighbours_are_left_alone(tmp_path: Path) -> None:
    kept = [".other.tmp-abcdefgh", ".run.tmp-a.tmp-abcdefgh", ".run.tmp-mine", "run.tmp-abcdefgh"]
    for name in kept:
        (tmp_path / name).mkdir()
    recover(tmp_path / "run")
    assert names(tmp_path) == sorted(kept)


def test_full_disk_reports_where(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'run'}'"),
        staging_folder(tmp_path / "run"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []

"""A directory is replaced atomically, even after earlier writers were killed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from polyhead_bundle.atomic_directory import recover, replace_directory, staging_folder


def write_directory(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_of_killed_writers_are_removed(tmp_path: Path) -> None:
    write_directory(tmp_path / "run", "new")
    write_directory(tmp_path / ".run.tmp-abcdefgh", "half")
    write_directory(tmp_path / ".run.tmp-ab_defg1.old", "old")
    recover(tmp_path / "run")
    assert list_names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "new"


@pytest.mark.parametrize("staged", [True, False], ids=["killed between the renames", "staging folder removed since"])
def test_previous_directory_is_restored_after_a_kill_between_the_renames(tmp_path: Path, staged: bool) -> None:
    if staged:
        write_directory(tmp_path / ".run.tmp-abcdefgh", "new")
    write_directory(tmp_path / ".run.tmp-abcdefgh.old", "old")
    recover(tmp_path / "run")
    assert list_names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "old"


def test_next_writer_recovers_first(tmp_path: Path) -> None:
    write_directory(tmp_path / ".run.tmp-abcdefgh", "new")
    write_directory(tmp_path / ".run.tmp-abcdefgh.old", "old")
    with staging_folder(tmp_path / "run") as staging:
        assert list_names(tmp_path) == [staging.name, "run"]


def test_folders_of_a_running_writer_are_kept(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "run") as staging:
        (staging / "file").write_text("new")
        previous = write_directory(staging.with_name(staging.name + ".old"), "old")
        recover(tmp_path / "run")
        assert list_names(tmp_path) == sorted([staging.name, previous.name])
        previous.rename(tmp_path / "run")
        replace_directory(staging, tmp_path / "run")
    assert list_names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "new"


def test_other_directories_are_kept(tmp_path: Path) -> None:
    kept = [".other.tmp-abcdefgh", ".run.tmp-a.tmp-abcdefgh", ".run.tmp-other", "run.tmp-abcdefgh"]
    for name in kept:
        (tmp_path / name).mkdir()
    recover(tmp_path / "run")
    assert list_names(tmp_path) == sorted(kept)


def test_error_of_a_full_disk_names_the_directory(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'run'}'"),
        staging_folder(tmp_path / "run"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list_names(tmp_path) == []

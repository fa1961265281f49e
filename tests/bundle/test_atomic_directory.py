"""A directory is replaced atomically, even after earlier writers were killed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhead_bundle import atomic_directory
from polyhead_bundle.atomic_directory import recover, replace_directory, staging_folder, sync_tree


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


def test_folder_of_a_killed_writer_is_removed_beside_a_running_one(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "run") as staging:
        previous = write_directory(staging.with_name(staging.name + ".old"), "old")
        write_directory(tmp_path / ".run.tmp-zzzzzzzz", "half")
        recover(tmp_path / "run")
        assert list_names(tmp_path) == sorted([staging.name, previous.name])


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


def test_previous_directory_is_moved_to_a_name_that_recover_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_directory(tmp_path / "run", "old")
    rename = Path.rename

    def move_aside_only(self: Path, destination: Path) -> Path:
        rename(self, destination)
        raise _KilledError

    with staging_folder(target) as staging, monkeypatch.context() as patch:
        patch.setattr(Path, "rename", move_aside_only)
        # Restoring is disabled too, as after a kill.
        patch.setattr(Path, "exists", lambda self: self == target)
        with pytest.raises(_KilledError):
            replace_directory(staging, target)
    assert not target.exists()
    recover(target)
    assert list_names(tmp_path) == ["run"]
    assert (target / "file").read_text() == "old"


def test_failed_rename_to_a_new_destination_raises_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, destination: Path) -> Path:
        raise _KilledError

    with staging_folder(tmp_path / "run") as staging, monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(_KilledError):
            replace_directory(staging, tmp_path / "run")
    assert list_names(tmp_path) == []


def test_every_file_and_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_directory(tmp_path / "run", "new")
    write_directory(root / "folder", "nested")
    synced: list[Path] = []
    monkeypatch.setattr(atomic_directory, "sync", synced.append)
    sync_tree(root)
    assert sorted(synced) == sorted([root, *root.rglob("*")])


class _KilledError(Exception):
    """Simulates the end of the process."""


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], indirect=True, ids=oct)
def test_umask_decides_every_mode(tmp_path: Path, umask: int) -> None:
    with staging_folder(tmp_path / "run") as staging:
        (staging / "folder").mkdir(0o700)
        (staging / "folder/private").touch(0o600)
        (staging / "executable").touch()
        (staging / "executable").chmod(0o777)
        replace_directory(staging, tmp_path / "run")
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    }
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"run": folder, "folder": folder, "private": file, "executable": file}

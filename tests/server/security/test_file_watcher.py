"""Values and changes of files that a server reads while it runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.security.file_watcher import FileWatcher, ReloadingFile, file_signature, read_bytes


def replace(path: Path, text: str) -> None:
    """Replaces a file; a new file differs from the old one even if both were written within a tick of the clock."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.rename(path)


class NumberFile:
    """A file that contains a number, and the reloading value of it, under a fake clock.

    Attributes:
        reads: How often the file was read.
    """

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.reads = 0
        self._path = folder / "number"
        self.write("1")
        self.number = ReloadingFile([self._path], self._read, lambda: self.now)

    def write(self, text: str) -> None:
        replace(self._path, text)

    def remove(self) -> None:
        self._path.unlink()

    def _read(self) -> int:
        self.reads += 1
        try:
            return int(read_bytes(self._path, "the number"))
        except ValueError as error:
            raise StartupError(str(error)) from error


@pytest.fixture
def file(tmp_path: Path) -> NumberFile:
    return NumberFile(tmp_path)


def test_unchanged_file_is_not_read_again(file: NumberFile) -> None:
    file.now = 1e9
    assert [file.number.value() for _ in range(3)] == [1, 1, 1]
    assert file.reads == 1


def test_changed_file_is_read_once(file: NumberFile) -> None:
    file.write("2")
    assert [file.number.value() for _ in range(3)] == [2, 2, 2]
    assert file.reads == 2


def test_invalid_file_keeps_the_old_value_and_is_logged_once(
    file: NumberFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.write("x")
    assert [file.number.value() for _ in range(3)] == [1, 1, 1]
    file.write("x")
    assert file.number.value() == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'x'" in record.message
    assert "stays in force" in record.message


def test_invalid_file_is_read_again_after_the_retry_interval(file: NumberFile) -> None:
    file.write("x")
    file.number.value()
    file.now = 9.9
    file.number.value()
    assert file.reads == 2
    file.now = 10.1
    file.number.value()
    file.number.value()
    assert file.reads == 3


def test_removed_file_keeps_the_old_value(file: NumberFile, caplog: pytest.LogCaptureFixture) -> None:
    file.remove()
    assert file.number.value() == 1
    assert "No such file" in caplog.text
    file.write("3")
    assert file.number.value() == 3


def test_link_counts_as_the_file_that_it_leads_to(tmp_path: Path) -> None:
    """Kubernetes changes a secret this way: one link changes, and with it all files of a folder."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("old")
    text = ReloadingFile([link / "file"], (link / "file").read_text)
    fresh = tmp_path / "fresh"
    fresh.symlink_to("new")
    fresh.rename(link)
    assert text.value() == "new"


def test_first_value_must_be_valid(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(StartupError, match=r"cannot read the number .*missing: No such file"):
        ReloadingFile([missing], lambda: read_bytes(missing, "the number"))


def test_signature_changes_with_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    signatures = [file_signature(path)]
    replace(path, "2")
    signatures.append(file_signature(path))
    path.write_text("two")
    signatures.append(file_signature(path))
    assert len(set(signatures)) == 3
    assert file_signature(path) == file_signature(path)
    assert file_signature(tmp_path / "missing") is None


async def changes_seen(watcher: FileWatcher, steps: list[str | None], path: Path) -> list[int]:
    """Watches while the file is replaced, or removed for None, before each look; returns the number of each look that
    saw a change.
    """
    looks = 0
    seen: list[int] = []

    async def sleep(interval_s: float) -> None:
        nonlocal looks
        assert interval_s == 5
        if looks == len(steps):
            raise TimeoutError
        step = steps[looks]
        looks += 1
        apply(step)

    def apply(step: str | None) -> None:
        if step is None:
            path.unlink(missing_ok=True)
        elif step:
            replace(path, step)

    async def on_change() -> None:
        seen.append(looks)

    with pytest.raises(TimeoutError):
        await watcher.watch(on_change, 5, sleep)
    return seen


async def test_watcher_reports_each_change_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    assert await changes_seen(FileWatcher([path]), ["", "2", "", "", "3", ""], path) == [2, 5]


async def test_watcher_reports_a_change_before_its_first_look(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watcher = FileWatcher([path])
    replace(path, "2")
    assert await changes_seen(watcher, ["", ""], path) == [1]


async def test_watcher_waits_until_a_removed_file_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    assert await changes_seen(FileWatcher([path]), [None, "", "2", ""], path) == [3]


async def test_file_that_disappears_for_a_moment_has_not_changed(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_text("1")
    path.symlink_to(target)
    watcher = FileWatcher([path])
    assert await changes_seen(watcher, ["", None], path) == []
    path.symlink_to(target)
    assert await changes_seen(watcher, ["", ""], path) == []

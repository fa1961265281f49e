"""What a server reads from files while it runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.security.file_watcher import ReloadingFile, read_bytes


class Number:
    """A file with a number, under a fake clock.

    Attributes:
        reads: How often the file was read.
    """

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.reads = 0
        self._path = folder / "number"
        self.write("1")
        self.watched = ReloadingFile([self._path], self._read, lambda: self.now)

    def write(self, text: str) -> None:
        """As a new file, which differs from the old one also where both were written within a tick of the clock."""
        fresh = self._path.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.rename(self._path)

    def remove(self) -> None:
        self._path.unlink()

    def _read(self) -> int:
        self.reads += 1
        try:
            return int(read_bytes(self._path, "the number"))
        except ValueError as error:
            raise StartupError(str(error)) from error


@pytest.fixture
def number(tmp_path: Path) -> Number:
    return Number(tmp_path)


def test_file_that_did_not_change_is_not_read_again(number: Number) -> None:
    number.now = 1e9
    assert [number.watched.value() for _ in range(3)] == [1, 1, 1]
    assert number.reads == 1


def test_changed_file_is_read_once(number: Number) -> None:
    number.write("2")
    assert [number.watched.value() for _ in range(3)] == [2, 2, 2]
    assert number.reads == 2


def test_damaged_file_leaves_the_old_value_and_is_told_once(number: Number, caplog: pytest.LogCaptureFixture) -> None:
    number.write("x")
    assert [number.watched.value() for _ in range(3)] == [1, 1, 1]
    number.write("x")
    assert number.watched.value() == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'x'" in record.message
    assert "stays in force" in record.message


def test_damaged_file_is_tried_again_after_a_while(number: Number) -> None:
    number.write("x")
    number.watched.value()
    number.now = 9.9
    number.watched.value()
    assert number.reads == 2
    number.now = 10.1
    number.watched.value()
    number.watched.value()
    assert number.reads == 3


def test_file_that_vanished_leaves_the_old_value(number: Number, caplog: pytest.LogCaptureFixture) -> None:
    number.remove()
    assert number.watched.value() == 1
    assert "No such file" in caplog.text
    number.write("3")
    assert number.watched.value() == 3


def test_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    """So come secrets into a container: all files of a folder change when one link does."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "current"
    link.symlink_to("old")
    watched = ReloadingFile([link / "file"], (link / "file").read_text)
    fresh = tmp_path / "fresh"
    fresh.symlink_to("new")
    fresh.rename(link)
    assert watched.value() == "new"


def test_first_value_must_be_good(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(StartupError, match=r"the number .*missing cannot be read: No such file"):
        ReloadingFile([missing], lambda: read_bytes(missing, "the number"))

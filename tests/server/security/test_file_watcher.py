"""Values and changes of files that a server reads while it runs."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.security.file_watcher import MAX_FILE_BYTES, ReloadingFile, file_signature, read_bytes

from tests.support.polling import wait_until


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
        self.number = ReloadingFile([self._path], self._read, lambda: self.now, poll_interval_s=None)

    def current(self) -> int:
        self.number.refresh()
        return self.number.value()

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
    assert [file.current() for _ in range(3)] == [1, 1, 1]
    assert file.reads == 1


def test_changed_file_is_read_once(file: NumberFile) -> None:
    file.write("2")
    assert [file.current() for _ in range(3)] == [2, 2, 2]
    assert file.reads == 2


def test_invalid_file_keeps_the_old_value_and_is_logged_once(
    file: NumberFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.write("x")
    assert [file.current() for _ in range(3)] == [1, 1, 1]
    file.write("x")
    assert file.current() == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'x'" in record.message
    assert "stays in force" in record.message


def test_invalid_file_is_read_again_after_the_retry_interval(file: NumberFile) -> None:
    file.write("x")
    file.current()
    file.now = 9.9
    file.current()
    assert file.reads == 2
    file.now = 10.1
    file.current()
    file.current()
    assert file.reads == 3


def test_removed_file_keeps_the_old_value(file: NumberFile, caplog: pytest.LogCaptureFixture) -> None:
    file.remove()
    assert file.current() == 1
    assert "No such file" in caplog.text
    file.write("3")
    assert file.current() == 3


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
    text.refresh()
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


def test_change_is_found_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file = ReloadingFile([path], path.read_text, poll_interval_s=0.01)
    replace(path, "2")
    wait_until(lambda: file.value() == "2")


def test_background_thread_ends_with_the_value(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    before = set(threading.enumerate())
    file = ReloadingFile([path], path.read_text, poll_interval_s=0.01)
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "file-watcher"]
    assert thread.daemon
    del file
    thread.join(20)
    assert not thread.is_alive()


def test_file_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """The background thread hangs in it, as it would on a network file system without its server."""
    path = tmp_path / "file"
    path.write_text("1")
    reads, resume = threading.Event(), threading.Event()

    def read() -> str:
        if path.read_text() == "hangs":
            reads.set()
            resume.wait(20)
        return path.read_text()

    file = ReloadingFile([path], read, poll_interval_s=0.01)
    replace(path, "hangs")
    assert reads.wait(20)
    assert file.value() == "1"
    replace(path, "2")
    resume.set()
    wait_until(lambda: file.value() == "2")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_fifo, "it is not a regular file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
        (make_socket, "No such device or address"),
        (make_large, "it is larger than 16,777,216 bytes"),
        (lambda path: None, "No such file or directory"),
    ],
    ids=["fifo", "directory", "device", "socket", "large", "missing"],
)
def test_only_regular_files_of_a_bounded_size_are_read(
    make: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(StartupError, match=f"cannot read the key file {re.escape(str(path))}: {problem}"):
        read_bytes(path, "the key file")

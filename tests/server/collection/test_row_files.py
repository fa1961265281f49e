"""The files of collected rows: whole lines, private, bounded, and none of another process's business."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from polyhead_server.collection.row_files import RowFiles

ROW = b"x" * 99 + b"\n"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_rows_are_appended_to_a_private_file(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    files = RowFiles(folder, 100_000, 1)
    for number in range(5):
        files.append(b"%d\n" % number)
    (path,) = folder.iterdir()
    assert path.read_bytes() == b"0\n1\n2\n3\n4\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_oldest_files_are_deleted_beyond_the_limit(tmp_path: Path) -> None:
    files = RowFiles(tmp_path, 8000, 1)
    kept = tmp_path / "notes.txt"
    kept.write_text("not a file of rows")
    for number in range(300):
        files.append(b"%98d\n" % number)
        assert total(tmp_path) - kept.stat().st_size <= 8000
    rows = b"".join((tmp_path / name).read_bytes() for name in names(tmp_path) if name != kept.name)
    assert kept.exists()
    # No more is deleted than necessary, and the newest rows are there.
    assert rows.count(b"\n") >= 60
    assert all(b"%98d\n" % number in rows for number in range(240, 300))


def test_processes_together_keep_the_limit(tmp_path: Path) -> None:
    writers = [RowFiles(tmp_path, 16_000, 4) for _ in range(4)]
    for _ in range(200):
        for writer in writers:
            writer.append(ROW)
            assert total(tmp_path) <= 16_000
    assert len(names(tmp_path)) > len(writers)


def test_row_larger_than_a_file_does_not_fit(tmp_path: Path) -> None:
    files = RowFiles(tmp_path, 8000, 1)
    assert files.fits(b"x" * 1000)
    assert not files.fits(b"x" * 1001)


def test_rows_after_a_deleted_file_go_to_another(tmp_path: Path) -> None:
    files = RowFiles(tmp_path, 100_000, 1)
    files.append(ROW)
    next(tmp_path.iterdir()).unlink()
    files.append(ROW)
    assert total(tmp_path) == len(ROW)


def test_failed_write_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RowFiles(tmp_path, 100_000, 1)
    files.append(ROW)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:40]))
        with pytest.raises(OSError, match="No space left") as caught:
            files.append(ROW)
    assert caught.value.errno == errno.ENOSPC
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == ROW
    files.append(ROW)
    assert path.read_bytes() == 2 * ROW


@pytest.mark.parametrize(
    ("content", "repaired"),
    [(2 * ROW + b"torn", 2 * ROW), (b"torn", b""), (ROW + b"y" * 200_000, ROW), (ROW, ROW), (b"", b"")],
)
def test_incomplete_last_line_is_cut_off(tmp_path: Path, content: bytes, repaired: bytes) -> None:
    path = tmp_path / "collected-20260101T000000-1-1.jsonl"
    path.write_bytes(content)
    RowFiles(tmp_path, 100_000, 1).repair()
    assert path.read_bytes() == repaired


def test_file_of_a_running_process_and_other_files_are_not_repaired(tmp_path: Path) -> None:
    running = tmp_path / "collected-20260101T000000-1-1.jsonl"
    other = tmp_path / "labelled.jsonl"
    for path in (running, other):
        path.write_bytes(b"torn")
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        RowFiles(tmp_path, 100_000, 1).repair()
    assert running.read_bytes() == other.read_bytes() == b"torn"


def test_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    files = RowFiles(folder, 100_000, 1)
    files.append(ROW)
    (path,) = folder.iterdir()
    files.close()
    path.unlink()
    path.symlink_to(secret)
    files.append(ROW)
    assert secret.read_bytes() == b""


def test_link_is_not_repaired(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_bytes(b"torn")
    folder.mkdir()
    (folder / "collected-20260101T000000-1-1.jsonl").symlink_to(secret)
    RowFiles(folder, 100_000, 1).repair()
    assert secret.read_bytes() == b"torn"


def test_file_that_another_process_deletes_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RowFiles(tmp_path, 100_000, 1)
    monkeypatch.setattr(files, "_files", lambda: iter([tmp_path / "collected-20260101T000000-1-1.jsonl"]))
    files.repair()


def test_new_file_that_another_process_looks_at_is_written_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, real_open = RowFiles(tmp_path, 100_000, 1), os.open

    def open_and_look(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        # Another process repairs files meanwhile.
        other = real_open(path, os.O_RDWR)
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.05, os.close, [other]).start()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_look)
        files.append(ROW)
    assert total(tmp_path) == len(ROW)

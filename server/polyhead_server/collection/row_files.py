"""Appends rows to files of a folder, whole lines only, and deletes the oldest files beyond a limit.

The processes of a server share the folder; each writes a file of its own. A file is complete after each row, so that it
may be read, moved or deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

# Files of the limit that the folder holds at least, so that few rows are deleted at a time.
_FILES = 8
_NAME = re.compile(r"collected-\d{8}T\d{6}-\d+-\d+\.jsonl")
_BLOCK_BYTES = 64 * 2**10
_REPAIR_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class RowFiles:
    """The files of one process. One thread at a time; blocks."""

    def __init__(self, folder: Path, max_bytes: int, processes: int) -> None:
        """Opens no file yet.

        Args:
            folder: Folder of the files; created if it does not exist.
            max_bytes: Limit on the size of all files of the folder.
            processes: Number of processes that write to the folder.
        """
        self._folder = folder
        self._max_file_bytes = max_bytes // (_FILES * processes)
        # What all processes can add until one of them deletes files again.
        self._max_closed_bytes = max_bytes - processes * self._max_file_bytes
        self._descriptor = -1
        self._size = 0
        self._number = 0

    def fits(self, row: bytes) -> bool:
        """Returns whether a row is small enough for a file."""
        return len(row) <= self._max_file_bytes

    def append(self, row: bytes) -> None:
        """Appends a row, given with its line break, to a file that has room for it.

        Raises:
            OSError: It could not be written, for example because the disk is full. The file is as before.
        """
        if self._descriptor < 0 or self._size + len(row) > self._max_file_bytes or self._is_deleted():
            self.close()
            self._open()
        if os.write(self._descriptor, row) < len(row):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        self._size += len(row)

    def close(self) -> None:
        """Closes the current file; the next row opens another."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def repair(self) -> None:
        """Cuts incomplete last lines off the files of earlier processes, which a power failure can leave.

        Raises:
            OSError: A file cannot be read or changed.
        """
        for path in self._files():
            # Another process may have deleted it.
            with contextlib.suppress(FileNotFoundError), os.fdopen(os.open(path, _REPAIR_FLAGS), "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Another process writes to it.
                    continue
                size = file.seek(0, os.SEEK_END)
                if (complete := _end_of_last_line(file.fileno(), size)) < size:
                    file.truncate(complete)

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._delete_oldest()
        begin = f"collected-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while self._descriptor < 0:
            # Never used again, so that names sort by age.
            self._number += 1
            with contextlib.suppress(FileExistsError):
                self._descriptor = os.open(self._folder / f"{begin}-{self._number:06d}.jsonl", flags, 0o600)
        self._size = 0
        # Waits for another process that looks whether the file is complete.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _is_deleted(self) -> bool:
        return not os.fstat(self._descriptor).st_nlink

    def _delete_oldest(self) -> None:
        sizes: dict[Path, int] = {}
        for path in self._files():
            try:
                sizes[path] = path.stat().st_size
            except FileNotFoundError:
                # Another process has deleted it.
                continue
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._max_closed_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterator[Path]:
        """Yields the files of all processes, oldest first."""
        if self._folder.is_dir():
            with os.scandir(self._folder) as entries:
                files = [one.name for one in entries if one.is_file(follow_symlinks=False)]
            yield from (self._folder / name for name in sorted(files) if _NAME.fullmatch(name))


def _end_of_last_line(descriptor: int, size: int) -> int:
    """Returns the number of bytes up to the last line break."""
    end = size
    while end:
        begin = max(0, end - _BLOCK_BYTES)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0

"""Keeps values read from files up to date.

A change is found by polling with ``stat``, which also notices a link that leads to another file, as in a Kubernetes
secret, and works on network file systems. Only a thread of its own touches the files: a file system that hangs keeps
the last value in force and holds up nothing else.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from polyhead_server.errors import StartupError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two looks at the files.
POLL_INTERVAL_S = 0.5
# Rejected files that did not change are read again after this time: a certificate may have become valid meanwhile.
_RETRY_INTERVAL_S = 10.0
# Keys for every person of a large company, or the authorities of every browser, take a part of this.
MAX_FILE_BYTES = 16 * 2**20


class ReloadingFile(Generic[T]):
    """A value read from files, and read again in the background when they change."""

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        clock: Callable[[], float] = time.monotonic,
        poll_interval_s: float | None = POLL_INTERVAL_S,
    ) -> None:
        """Reads the value for the first time.

        Args:
            paths: The files; a link counts as the file that it leads to.
            read: Reads the value; raises ``StartupError`` if the files are invalid.
            clock: Returns the time in seconds.
            poll_interval_s: Seconds between two looks at the files; None to look only when ``refresh`` is called.

        Raises:
            StartupError: The files are invalid.
        """
        self._paths = paths
        self._read = read
        self._clock = clock
        # Before the files are read, so that a change meanwhile is seen at the next look.
        self._seen = self._look()
        self._value = read()
        self._problem = ""
        self._retry_at = 0.0
        self._refreshing = threading.Lock()
        if poll_interval_s is not None:
            # Ends when nothing else refers to this object.
            arguments = (weakref.ref(self), poll_interval_s)
            threading.Thread(target=_poll, args=arguments, name="file-watcher", daemon=True).start()

    def value(self) -> T:
        """Returns the last valid value. Never touches a file."""
        return self._value

    def refresh(self) -> None:
        """Reads the files if they have changed; keeps the value and logs the reason once if they are invalid."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        found = self._look()
        retry = bool(self._problem) and self._clock() >= self._retry_at
        if found == self._seen and not retry:
            return
        self._seen = found
        try:
            self._value = self._read()
        except StartupError as error:
            if str(error) != self._problem:
                logger.warning("%s; the previous version stays in force", error)
            self._problem, self._retry_at = str(error), self._clock() + _RETRY_INTERVAL_S
        else:
            logger.info("read again: %s", ", ".join(map(str, self._paths)))
            self._problem = ""

    def _look(self) -> list[tuple[int, ...] | None]:
        return [file_signature(path) for path in self._paths]


def _poll(reference: weakref.ref[ReloadingFile[T]], interval_s: float) -> None:
    """Refreshes a value until nothing else refers to it."""
    while file := reference():
        try:
            file.refresh()
        except Exception:
            # The next look may succeed: the thread must live on.
            logger.exception("files could not be checked for changes")
        del file
        time.sleep(interval_s)


def file_signature(path: Path) -> tuple[int, ...] | None:
    """Returns a value that differs after a file was written to or replaced; None if the file is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the inode's last change cannot be set back, and it covers content, owner and mode.
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def read_bytes(path: Path, what: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: The file.
        what: What the file is, for the error message.
        max_bytes: Largest size of the file.

    Raises:
        StartupError: The file cannot be read, is too large, or is a directory, a pipe or a device.
    """
    try:
        # Opening a pipe that nobody writes to would block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StartupError(f"cannot read {what} {path}: it is not a regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise StartupError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise StartupError(f"cannot read {what} {path}: it is larger than {max_bytes:,} bytes")
    return content

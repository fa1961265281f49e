"""Detects changed files, and keeps values read from files up to date.

A change is found by polling with ``stat``, which also notices a link that leads to another file, as in a Kubernetes
secret, and works on network file systems.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from polyhead_server.errors import StartupError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Rejected files that did not change are read again after this time: a certificate may have become valid meanwhile.
_RETRY_INTERVAL_S = 10.0


class FileWatcher:
    """Detects that files were written to, replaced or removed. The first look happens when it is created."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Takes the files to watch; a link counts as the file that it leads to."""
        self._paths = paths
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether any file has changed since the last look. Costs one ``stat`` per file."""
        found = self._look()
        if found == self._seen:
            return False
        self._seen = found
        return True

    async def watch(
        self,
        on_change: Callable[[], Awaitable[None]],
        interval_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> NoReturn:
        """Polls for changes until it is cancelled. A file that is missing is not a change until another one is there.

        Args:
            on_change: Called once per change.
            interval_s: Seconds between looks.
            sleep: Waits for a number of seconds.
        """
        while True:
            await sleep(interval_s)
            found = await asyncio.to_thread(self._look)
            if None in found or found == self._seen:
                continue
            self._seen = found
            await on_change()

    def _look(self) -> list[tuple[int, ...] | None]:
        return [file_signature(path) for path in self._paths]


class ReloadingFile(Generic[T]):
    """A value read from files, and read again when they change; it checks the files on each access."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the value for the first time.

        Args:
            paths: The files; a link counts as the file that it leads to.
            read: Reads the value; raises ``StartupError`` if the files are invalid.
            clock: Returns the time in seconds.

        Raises:
            StartupError: The files are invalid.
        """
        self._paths = paths
        self._read = read
        self._clock = clock
        # Created before the files are read, so that a change meanwhile is seen on the next access.
        self._watcher = FileWatcher(paths)
        self._value = read()
        self._problem = ""
        self._retry_at = 0.0

    def value(self) -> T:
        """Returns the value of the current files, or the last valid value; why files are rejected is logged once."""
        retry = bool(self._problem) and self._clock() >= self._retry_at
        if not self._watcher.changed() and not retry:
            return self._value
        try:
            self._value = self._read()
        except StartupError as error:
            if str(error) != self._problem:
                logger.warning("%s; the previous version stays in force", error)
            self._problem, self._retry_at = str(error), self._clock() + _RETRY_INTERVAL_S
        else:
            logger.info("read again: %s", ", ".join(map(str, self._paths)))
            self._problem = ""
        return self._value


def file_signature(path: Path) -> tuple[int, ...] | None:
    """Returns a value that differs after a file was written to or replaced; None if the file is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the inode's last change cannot be set back, and it covers content, owner and mode.
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def read_bytes(path: Path, what: str) -> bytes:
    """Returns the content of a file.

    Args:
        path: The file.
        what: What the file is, for the error message.

    Raises:
        StartupError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {what} {path}: {error.strerror}") from error

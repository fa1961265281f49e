"""Values made of files: made again when the files change, and kept as they are when the new files are no good."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from polyhead_server.errors import StartupError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Files that did not change are tried again after so long: a certificate, say, may have become valid meanwhile.
_RETRY_S = 10.0


class ReloadingFile(Generic[T]):
    """A value read from files. Looking whether they changed costs one ``stat`` a file, and needs no thread."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the value for the first time.

        Args:
            paths: The files; a link counts as what it leads to.
            read: Makes the value of them; raises ``StartupError`` when they are no good.
            clock: Seconds.

        Raises:
            StartupError: The files are no good.
        """
        self._paths = paths
        self._read = read
        self._clock = clock
        # Before the files are read: a change meanwhile is seen the next time.
        self._seen = self._look()
        self._value = read()
        self._problem = ""
        self._retry_at = 0.0

    def value(self) -> T:
        """The value of the files as they are now, or of the last that were good; the log tells once why."""
        seen = self._look()
        if seen == self._seen and not (self._problem and self._clock() >= self._retry_at):
            return self._value
        self._seen = seen
        try:
            self._value = self._read()
        except StartupError as error:
            if str(error) != self._problem:
                logger.warning("%s; what was read before stays in force", error)
            self._problem, self._retry_at = str(error), self._clock() + _RETRY_S
        else:
            logger.info("read again: %s", ", ".join(map(str, self._paths)))
            self._problem = ""
        return self._value

    def _look(self) -> list[tuple[int, ...] | None]:
        return [stamp(path) for path in self._paths]


def stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does, or is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    # The time of the last change of the inode, which nobody can set back, covers content, owner and rights.
    return found.st_ino, found.st_size, found.st_ctime_ns


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file.

    Raises:
        StartupError: It cannot be read; says what it is wanted for.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{what} {path} cannot be read: {error.strerror}") from error

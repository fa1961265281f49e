"""Files that appear complete or not at all: written under a temporary name, synced, renamed.

A writer holds a lock on its temporary file. The system releases the lock of a writer that was killed, so the next job
finds its file unlocked and deletes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from polyhead_bundle.atomic_directory import sync

_TEMPORARY = ".tmp-"
# Names of this package: parts, their records, the manifest, and the files of a run on a cluster.
_OWN = re.compile(
    r"\.(part-\d+-\d+\.(parquet|jsonl|json)|_manifest\.json|run|stop|attempts-\d+-\d+)" + re.escape(_TEMPORARY) + r"\w+"
)


class AtomicFile:
    """A file that is being written.

    Attributes:
        path: The name that ``commit`` gives it.
        size: Bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        """Creates the temporary file beside ``path``; its name begins with a dot, so that no reader takes it for data.

        Raises:
            OSError: It cannot be created.
        """
        self.path = path
        self.size = 0
        self._temporary = temporary_path(path, secrets.token_hex(4))
        self._digest = hashlib.sha256()
        self._file = self._create()
        while not self._is_there():  # another job took it for abandoned before it was locked
            self._file.close()
            self._file = self._create()

    def _create(self) -> IO[bytes]:
        file = self._temporary.open("xb", buffering=0)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def _is_there(self) -> bool:
        try:
            return self._temporary.stat().st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    @property
    def closed(self) -> bool:
        """Whether the file was committed or removed."""
        return self._file.closed

    @property
    def sha256(self) -> str:
        """Digest of what was written."""
        return self._digest.hexdigest()

    def write(self, content: bytes) -> int:
        """Appends bytes.

        Raises:
            OSError: They cannot be written, for example on a full disk.
        """
        view = memoryview(content)
        self._digest.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]
        return len(content)

    def flush(self) -> None:
        """Does nothing: no bytes are held back."""

    def tell(self) -> int:
        """Returns the number of bytes written."""
        return self.size

    def commit(self) -> None:
        """Syncs the file, gives it its name and syncs the folder.

        Raises:
            OSError: Any of that failed.
        """
        os.fsync(self._file.fileno())
        self._temporary.replace(self.path)
        self._file.close()
        sync(self.path.parent)

    def discard(self) -> None:
        """Removes the file unless it was committed."""
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a whole file.

    Raises:
        OSError: It cannot be written; a previous file of that name is unchanged.
    """
    file = AtomicFile(path)
    try:
        file.write(content)
        file.commit()
    finally:
        file.discard()


def temporary_path(path: Path, token: str) -> Path:
    """Returns a name beside ``path`` that ``remove_abandoned`` recognizes."""
    return path.with_name(f".{path.name}{_TEMPORARY}{token}")


def remove_abandoned(folder: Path) -> None:
    """Deletes temporary files of this package whose writers no longer run."""
    for path in folder.glob(f".*{_TEMPORARY}*"):
        if not _OWN.fullmatch(path.name):
            continue
        # Another process may delete or rename it meanwhile. NFS locks only files that are open for writing.
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that other processes on this file system wait for; none where locks are not supported."""
    with path.open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

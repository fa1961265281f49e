"""Reloads a bundle that has been replaced on disk.

A bundle is put in place as a whole, so a new manifest means that all its files are new. Copying tools do not keep to
that: the manifest may arrive first. A bundle that was refused is tried again once its files have changed and stay as
they are from one look to the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from polyhead_bundle import MANIFEST_NAME

from polyhead_server.security.file_watcher import file_signature
from polyhead_server.threads import in_daemon_thread

# More than a bundle of any version has.
_MAX_FILES = 1000


class _Identity(NamedTuple):
    """A manifest that was replaced or whose content was changed has another identity; its mode and times do not count.

    The manifest contains the digests of all other files.
    """

    device: int
    inode: int
    digest: bytes


class _Look(NamedTuple):
    """A bundle as found on disk.

    Attributes:
        manifest: Identity of the manifest; None if there is none.
        files: Signatures of all files.
    """

    manifest: _Identity | None
    files: tuple[object, ...]


class BundleWatcher:
    """Detects that another bundle stands at a path. The first look happens when it is created."""

    def __init__(self, bundle: Path) -> None:
        """Takes the path of the bundle, which may be a link."""
        self._bundle = bundle
        self._read_manifest = _Manifest(bundle / MANIFEST_NAME)
        self._manifest = self._read_manifest()

    async def watch(
        self,
        reload: Callable[[], Awaitable[bool]],
        interval_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> NoReturn:
        """Looks for changes until it is cancelled. A missing bundle is not a change until another one is there.

        Args:
            reload: Loads the bundle; returns whether it is being served.
            interval_s: Seconds between looks.
            sleep: Waits for a number of seconds.
        """
        # Files of the bundle that was refused last; None if the last one was accepted.
        refused: tuple[object, ...] | None = None
        previous: tuple[object, ...] = ()
        while True:
            await sleep(interval_s)
            look = await in_daemon_thread(self._look, "bundle-watcher")
            if look.manifest is None:
                continue
            completed = refused is not None and refused != look.files == previous
            previous = look.files
            if look.manifest != self._manifest or completed:
                self._manifest = look.manifest
                refused = None if await reload() else look.files

    def _look(self) -> _Look:
        # Path.resolve raises for a link that leads to itself.
        root = Path(os.path.realpath(self._bundle))
        found = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
        paths = sorted(itertools.islice(found, _MAX_FILES))
        files = tuple((str(path.relative_to(root)), file_signature(path)) for path in paths)
        return _Look(self._read_manifest(), (str(root), *files))


class _Manifest:
    """The identity of a manifest, which is read again only if its file has changed in any way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature: tuple[int, ...] | None = None
        self._identity: _Identity | None = None

    def __call__(self) -> _Identity | None:
        signature = file_signature(self._path)
        if signature != self._signature:
            self._signature, self._identity = signature, _identity(self._path)
        return self._identity


def _identity(path: Path) -> _Identity | None:
    """Returns the identity of a regular file; None if there is none."""
    try:
        # Opening a pipe that nobody writes to would block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
    return _Identity(status.st_dev, status.st_ino, digest)

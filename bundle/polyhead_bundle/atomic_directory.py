"""Directories that appear whole or not at all: written under a temporary name beside their own, synced, renamed.

::

    .NAME.tmp-xxxxxxxx/       what is being written, locked by its writer
    .NAME.tmp-xxxxxxxx.old/   what stood in its place, for the moment in which both change their names

A writer that is killed leaves them behind. The next one finds them unlocked: it deletes what was being written, and
puts back what was moved aside where nothing took its place. Training and export, which share no code, have this file
each; a test compares them.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, which vanishes when the block ends unless it was renamed.

    Args:
        target: What the folder is to become, with links resolved; the directory that it is in is made.

    Raises:
        OSError: The folder cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    lock = _lock(staging)
    try:
        with named_failures(target):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unlock(lock)


@contextmanager
def named_failures(place: Path) -> Iterator[None]:
    """Has a failure of the disk say where: one of writing to an open file, as a full disk's, does not."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(place)
        raise


def recover(target: Path) -> None:
    """Clears away what writers that were killed left beside ``target``, and brings back what one had moved aside.

    Args:
        target: The directory that they wrote, with links resolved.
    """
    if not target.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(target.name)}\.tmp-[a-z0-9_]{{8}}(\.old)?")
    # So what was being written comes before what it was to replace.
    for folder in sorted(path for path in target.parent.iterdir() if ours.fullmatch(path.name)):
        if folder.suffix != ".old":
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
        elif folder.with_suffix("").exists():
            continue  # its writer lives, and is just about to rename
        elif target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(target)


def replace_directory(staging: Path, destination: Path) -> None:
    """Puts ``staging`` in the place of its neighbour ``destination``, which is moved aside first and deleted last."""
    retired = staging.with_name(staging.name + ".old")
    try:
        if destination.exists():
            destination.rename(retired)
        staging.rename(destination)
    except BaseException:
        if retired.exists() and not destination.exists():
            retired.rename(destination)
        raise
    sync(destination.parent)
    shutil.rmtree(retired, ignore_errors=True)


def sync_tree(root: Path) -> None:
    """Has the disk hold everything in a directory."""
    for directory, _, files in os.walk(root, topdown=False):
        for path in [*(Path(directory) / file for file in files), Path(directory)]:
            sync(path)


def sync(path: Path) -> None:
    """Has the disk hold what was written to a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Locks a folder until it is unlocked or this process ends, however it ends; None where that cannot be."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system knows no locks
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)

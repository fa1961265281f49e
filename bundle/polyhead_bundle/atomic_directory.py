"""Directories that are replaced atomically: written under a temporary name in the same parent, synced, then renamed.

::

    .NAME.tmp-xxxxxxxx/       the staging folder, locked by its writer
    .NAME.tmp-xxxxxxxx.old/   the previous directory, while staging folder and destination are swapped

A writer that is killed leaves these folders behind. The next writer finds them unlocked: it deletes the staging folder,
and restores the previous directory unless a new one has taken its place. Training and export both use this module.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Creates an empty folder in the parent of ``target`` and removes it on exit, unless it was renamed.

    The umask decides the mode of the folder and of everything written in it, as for any other directory.

    Args:
        target: The directory that the folder will become, with links resolved; missing parents are created.

    Raises:
        OSError: The folder cannot be created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    # Not tempfile.mkdtemp: its folder would be private to its owner, whatever the umask says.
    staging = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    staging.mkdir()
    lock = _lock(staging)
    try:
        with add_path_to_os_errors(target):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unlock(lock)


@contextmanager
def add_path_to_os_errors(path: Path) -> Iterator[None]:
    """Adds ``path`` to an ``OSError`` that names no file, such as a write to an open file on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def recover(target: Path) -> None:
    """Removes the folders that killed writers left beside ``target``, and restores a directory that one moved aside.

    Args:
        target: The directory that they wrote, with links resolved.
    """
    if not target.parent.is_dir():
        return
    leftover = re.compile(rf"\.{re.escape(target.name)}\.tmp-[a-z0-9_]{{8}}(\.old)?")
    # Sorting puts each staging folder before the previous directory that belongs to it.
    for folder in sorted(path for path in target.parent.iterdir() if leftover.fullmatch(path.name)):
        if folder.suffix != ".old":
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
        elif folder.with_suffix("").exists():
            continue  # its writer is alive and about to rename the staging folder
        elif target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(target)


def replace_directory(staging: Path, destination: Path) -> None:
    """Syncs ``staging`` and renames it to ``destination``; a previous directory is moved aside first and deleted last.

    Args:
        staging: The complete folder of ``staging_folder``, in the same parent as ``destination``.
        destination: The directory to create or replace. It is restored when renaming fails.
    """
    previous = staging.with_name(staging.name + ".old")
    _apply_default_modes(staging)
    sync_tree(staging)
    try:
        if destination.exists():
            destination.rename(previous)
        staging.rename(destination)
    except BaseException:
        if previous.exists() and not destination.exists():
            previous.rename(destination)
        raise
    sync(destination.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _apply_default_modes(root: Path) -> None:
    """Gives every file and folder the mode that the umask gives to new ones, which ``root`` shows.

    Some libraries write files that only their owner may read, and copies keep the mode of their source.
    """
    mode = stat.S_IMODE(root.stat().st_mode)
    for directory, folders, files in os.walk(root):
        for names, target in ((folders, mode), (files, mode & 0o666)):
            for path in (Path(directory) / name for name in names):
                if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != target:
                    path.chmod(target)


def sync_tree(root: Path) -> None:
    """Flushes every file and folder of a directory to disk."""
    for directory, _, files in os.walk(root, topdown=False):
        for path in [*(Path(directory) / file for file in files), Path(directory)]:
            sync(path)


def sync(path: Path) -> None:
    """Flushes one file, or the entries of one directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Locks a folder until it is unlocked or this process ends; returns None when the lock cannot be taken."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds the lock, or the file system does not support locks
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)

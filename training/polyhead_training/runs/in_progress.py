"""The folder of a run that is under way, beside the run directory that it will become.

::

    RUN_DIR.unfinished/identity.json         what the run was started with; a resumed one must be started with the same
                       last.safetensors      checkpoint.py
                       best.safetensors
                       base_embeddings.npy   distillation.py
                       metrics.jsonl         metrics.py
                       trackers/             what accelerate's trackers write
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from polyhead_bundle.atomic_directory import sync

from polyhead_training.errors import ResumeError

from .checkpoint import LAST_NAME

IDENTITY_NAME = "identity.json"

# What to do with an unfinished run: go on with it, discard it, or refuse to choose.
Unfinished = Literal["resume", "restart", "refuse"]
Identity = dict[str, Any]


def unfinished_path(destination: Path) -> Path:
    """The folder of a run that is under way, by its run directory."""
    target = destination.resolve()
    return target.with_name(target.name + ".unfinished")


@contextmanager
def unfinished_run(destination: Path, identity: Identity, policy: Unfinished) -> Iterator[Path]:
    """The folder of a run that is under way; it is deleted when the block ends well and stays when not.

    Args:
        destination: The run directory.
        identity: What decides about the weights that come out: configuration, data, steps, processes.
        policy: What to do with an unfinished run that is there.

    Raises:
        ResumeError: Another process is training into it; or it is there and nobody said what to do with it; or it was
            started with something else; or it cannot be written.
    """
    folder = unfinished_path(destination)
    _require_own(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / IDENTITY_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise ResumeError(folder, f"cannot be written: {error.strerror}. Choose another --output-dir") from None
    with stream:
        _lock(stream, folder)
        _prepare(folder, identity, policy)
        yield folder
        _clear(folder)
    shutil.rmtree(folder)


def _prepare(folder: Path, identity: Identity, policy: Unfinished) -> None:
    path = folder / IDENTITY_NAME
    if (folder / LAST_NAME).exists():
        if policy == "refuse":
            mend = "go on with it with --resume, or discard it with --restart"
            raise ResumeError(folder, f"holds a run that is not finished: {mend}")
        if policy == "resume":
            _require_same(folder, _read(path), identity)
            return
    _clear(folder)
    path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    sync(path)


def _clear(folder: Path) -> None:
    """Empties a folder but for what says whose it is; the checkpoint goes first, the rest means nothing without it."""
    (folder / LAST_NAME).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != IDENTITY_NAME:
            entry.unlink()


def _read(path: Path) -> Identity:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ResumeError(path, f"cannot be read ({error}); start again with --restart") from None


def _require_own(folder: Path) -> None:
    """Refuses a folder that something else made: what is in it may be deleted."""
    if folder.exists() and not (folder / IDENTITY_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResumeError(folder, "exists and is no unfinished run; it was left untouched. Choose another --output-dir")


def _lock(stream: IO[str], folder: Path) -> None:
    """Keeps other processes out until the file is closed or this process ends, however it ends."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "another process is training into it; wait for it, or choose another --output-dir"
        raise ResumeError(folder, reason) from None


def _require_same(folder: Path, before: Identity, now: Identity) -> None:
    if found := difference(before, now):
        raise ResumeError(folder, f"was started with {found}: start as before, or discard it with --restart")


def difference(before: Identity, now: Identity, prefix: str = "") -> str | None:
    """The first thing that two starts of a run differ in, with both values; None where they are the same.

    Args:
        before: What a run was started with.
        now: What this start has.
        prefix: What the names of its fields begin with.
    """
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := difference(old, new, f"{prefix}{key}."):
                return found
        elif old != new:
            return f"{prefix}{key} = {json.dumps(old)}, this start has {json.dumps(new)}"
    return None

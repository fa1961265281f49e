"""Folders of runs in progress, beside the run directories that they will become.

::

    RUN_DIR.in_progress/identity.json         inputs of the run; a resumed run must have the same
                        last.safetensors      checkpoint.py
                        best.safetensors
                        base_embeddings.npy   loop/distillation.py
                        features_SPLIT.npy    features.py
                        teacher_logits.npy    loop/teacher.py
                        metrics.jsonl         loop/training_log.py
                        trackers/             files of accelerate's trackers
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

# Action for an existing run in progress: resume it, discard it and restart, or raise an error.
ResumePolicy = Literal["resume", "restart", "refuse"]
Identity = dict[str, Any]


def in_progress_path(destination: Path) -> Path:
    """Returns the folder of a run in progress, from the path of its run directory."""
    target = destination.resolve()
    return target.with_name(target.name + ".in_progress")


@contextmanager
def in_progress_run(destination: Path, identity: Identity, policy: ResumePolicy) -> Iterator[Path]:
    """Opens the folder of a run in progress; deletes it if the block succeeds and keeps it if the block raises.

    Args:
        destination: The run directory.
        identity: Every input that affects the trained weights: configuration, data, steps, processes.
        policy: Action for an existing run in progress.

    Raises:
        ResumeError: Another process uses the folder; or a run in progress exists and the policy is ``refuse``; or its
            identity differs; or the folder cannot be written.
    """
    folder = in_progress_path(destination)
    _require_replaceable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / IDENTITY_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise ResumeError(folder, f"cannot be written: {error.strerror}. Choose another --output-dir") from None
    with stream:
        lock(stream, folder)
        _prepare(folder, identity, policy)
        yield folder
        _clear(folder)
    shutil.rmtree(folder)


def _prepare(folder: Path, identity: Identity, policy: ResumePolicy) -> None:
    path = folder / IDENTITY_NAME
    if (folder / LAST_NAME).exists():
        if policy == "refuse":
            raise ResumeError(
                folder, "contains a run in progress: continue it with --resume, or discard it with --restart"
            )
        if policy == "resume":
            require_same(folder, read_json(path), identity)
            return
    _clear(folder)
    path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    sync(path)


def _clear(folder: Path) -> None:
    """Empties a folder except for its identity. The checkpoint is deleted first: without it the rest is unused."""
    (folder / LAST_NAME).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != IDENTITY_NAME:
            path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a run in progress.

    Raises:
        ResumeError: The file is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ResumeError(path, f"cannot be read ({error}); start again with --restart") from None


def _require_replaceable(folder: Path) -> None:
    """Rejects a folder that training did not create, because its content may be deleted."""
    if folder.exists() and not (folder / IDENTITY_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResumeError(
            folder, "exists and is not a run in progress; it was left untouched. Choose another --output-dir"
        )


def lock(stream: IO[Any], folder: Path) -> None:
    """Locks the folder until the file is closed or this process ends, for whatever reason.

    Args:
        stream: An open file of the folder.
        folder: The folder.

    Raises:
        ResumeError: Another process has locked it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "another process is training in it; wait for it, or choose another --output-dir"
        raise ResumeError(folder, reason) from None


def require_same(folder: Path, before: Identity, now: Identity) -> None:
    """Checks that a run in progress has the identity of this start.

    Raises:
        ResumeError: The identities differ.
    """
    if found := difference(before, now):
        raise ResumeError(folder, f"was started with {found}: use the same inputs, or discard it with --restart")


def difference(before: Identity, now: Identity, prefix: str = "") -> str | None:
    """Describes the first field that differs between two identities, with both values; None if they are equal.

    Args:
        before: Identity of the existing run.
        now: Identity of this start.
        prefix: Prefix of the field names in the description.
    """
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := difference(old, new, f"{prefix}{key}."):
                return found
        elif old != new:
            return f"{prefix}{key} = {json.dumps(old)}, this start has {json.dumps(new)}"
    return None

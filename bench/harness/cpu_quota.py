"""Limits processes to a part of a core with control groups, so that few cores can show what more of them would give."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Short, so that a process that has used its quota waits for milliseconds only.
_PERIOD_US = 10_000


@contextlib.contextmanager
def cpu_quota(processes: Sequence[int], cores: float) -> Iterator[None]:
    """Limits each of the processes to ``cores``, below 1 for a part of one. Requires root and Linux.

    Raises:
        SystemExit: Control groups cannot be written.
    """
    quota = max(1000, round(cores * _PERIOD_US))
    with contextlib.ExitStack() as stack:
        try:
            for process in processes:
                stack.callback(_make_group(process, quota).rmdir)
        except OSError as error:
            raise SystemExit(f"cannot limit the CPU time of processes: {error}") from error
        try:
            yield
        finally:
            # A group with processes cannot be removed.
            for process in processes:
                with contextlib.suppress(OSError):
                    _parent().joinpath("cgroup.procs").write_text(str(process))


def _parent() -> Path:
    version_1 = _ROOT / "cpu"
    return version_1 if version_1.exists() else _ROOT


def _make_group(process: int, quota_us: int) -> Path:
    parent = _parent()
    group = parent / f"polyhead-bench-{os.getpid()}-{process}"
    if parent == _ROOT:
        (parent / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    if parent == _ROOT:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    (group / "cgroup.procs").write_text(str(process))
    return group

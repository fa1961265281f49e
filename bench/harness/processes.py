"""CPU time of processes and threads, read from /proc, whose clock usually ticks 100 times a second."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def find_server(target: str) -> int:
    """Returns the id of the process that was started with ``--listen TARGET``."""
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while it is inspected.
        with contextlib.suppress(OSError):
            if f"--listen\0{target}\0".encode() in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise SystemExit(f"no process was started with --listen {target}")


def cpu_s(pid: int) -> float:
    """Returns the user and system time of a process in seconds."""
    return _cpu_s(Path(f"/proc/{pid}"))


def session_cpu_s(session: int) -> float:
    """Returns the user and system time of a session's processes and their descendants in seconds.

    Descendants may have sessions of their own, as the workers of some process managers have. Processes that have ended
    are not counted.
    """
    found: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while it is inspected.
        with contextlib.suppress(OSError):
            found[int(folder.name)] = _stat(folder)
    members: set[int] = set()
    added = {pid for pid, fields in found.items() if int(fields[3]) == session}
    while added:
        members |= added
        added = {pid for pid, fields in found.items() if int(fields[1]) in added} - members
    return sum(_seconds(found[pid]) for pid in members)


def thread_cpu_s(pid: int) -> dict[int, float]:
    """Returns the CPU seconds of each thread of a process by thread id; the main thread has the process's id."""
    return {int(folder.name): _cpu_s(folder) for folder in Path(f"/proc/{pid}/task").iterdir()}


def _cpu_s(folder: Path) -> float:
    return _seconds(_stat(folder))


def _stat(folder: Path) -> list[str]:
    """Returns the fields of a process or thread from its state on: state, parent, group, session, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _seconds(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

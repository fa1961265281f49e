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
    """Returns the user and system time of all processes of a session in seconds, without those that have ended."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while it is inspected.
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == session:
                total += _cpu_s(folder)
    return total


def thread_cpu_s(pid: int) -> dict[int, float]:
    """Returns the CPU seconds of each thread of a process by thread id; the main thread has the process's id."""
    return {int(folder.name): _cpu_s(folder) for folder in Path(f"/proc/{pid}/task").iterdir()}


def _cpu_s(folder: Path) -> float:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

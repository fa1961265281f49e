"""Resident memory of a server, measured from outside over all of its processes."""

from __future__ import annotations

import re
from pathlib import Path

_PROC = Path("/proc")


def memory(target: str) -> dict[str, float]:
    """Returns the resident memory of the server that was started with ``--listen TARGET``.

    The figures include the worker processes. Shared pages count once per process, and the peaks of several processes
    are added up even if they occurred at different times, so both figures are upper bounds for a server with workers.

    Returns:
        ``rss_mb``, the current resident memory, and ``peak_rss_mb``, the highest so far, in MiB.

    Raises:
        SystemExit: No process was started with this target.
    """
    statuses: dict[int, str] = {}
    servers = set()
    for folder in _PROC.glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "status").read_text()
        # The process ended in the meantime.
        except OSError:
            continue
        statuses[int(folder.name)] = status
        if f"--listen\0{target}\0".encode() in command:
            servers.add(int(folder.name))
    if not servers:
        raise SystemExit(f"no process was started with --listen {target}")
    while children := {pid for pid, status in statuses.items() if _field(status, "PPid") in servers} - servers:
        servers |= children
    return {
        "rss_mb": sum(_field(statuses[pid], "VmRSS") for pid in servers) / 1024,
        "peak_rss_mb": sum(_field(statuses[pid], "VmHWM") for pid in servers) / 1024,
    }


def _field(status: str, name: str) -> int:
    """Returns a number of ``/proc/PID/status``; 0 where a process has none, such as a zombie."""
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0

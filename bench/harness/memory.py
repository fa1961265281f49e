"""The memory of a server, from outside: of its process and, where it has any, of its workers' processes together."""

from __future__ import annotations

import re
from pathlib import Path

_PROC = Path("/proc")


def memory(target: str) -> dict[str, float]:
    """Resident megabytes of the server that was started with ``--listen TARGET``: now, and at their highest.

    Pages that processes share count once in each of them, and several processes' highest values are added up even if
    they were not at the same time: with workers both numbers are upper bounds.
    """
    statuses: dict[int, str] = {}
    servers = set()
    for folder in _PROC.glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "status").read_text()
        # It ended meanwhile.
        except OSError:
            continue
        statuses[int(folder.name)] = status
        if f"--listen\0{target}\0".encode() in command:
            servers.add(int(folder.name))
    if not servers:
        raise SystemExit(f"no process was started with --listen {target}")
    while more := {pid for pid, status in statuses.items() if _number(status, "PPid") in servers} - servers:
        servers |= more
    return {
        "rss_mb": sum(_number(statuses[pid], "VmRSS") for pid in servers) / 1024,
        "peak_mb": sum(_number(statuses[pid], "VmHWM") for pid in servers) / 1024,
    }


def _number(status: str, field: str) -> int:
    """A number of ``/proc/PID/status``; 0 where a process has none of it, as when it is a zombie."""
    found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0

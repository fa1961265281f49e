"""Wall time, CPU time and peak memory of a piece of work, in this process or in another one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Self

from bench.harness.processes import cpu_s
from bench.harness.results import Figures

_POLL_S = 0.05
_FIELD = re.compile(r"^VmHWM:\s+(\d+)", re.MULTILINE)


class Timer:
    """Measures the time of its ``with`` block in all threads of this process.

    Attributes:
        figures: ``wall_s`` and ``cpu_s``, after the block.
    """

    def __enter__(self) -> Self:
        self.figures: Figures = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures = {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def run_measured(command: list[str]) -> Figures | None:
    """Runs a command to its end.

    Args:
        command: The command. A last line of JSON on its standard output adds figures, such as ``work_s``.

    Returns:
        ``wall_s``, ``cpu_s`` and ``peak_mb`` of its processes together, ``work_s``; None if it failed.
    """
    before, began = os.times(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, seen_s = 0, dict[int, float]()
        while process.poll() is None:
            peak = max(peak, _observe(process.pid, seen_s))
            time.sleep(_POLL_S)
        output = process.stdout.read() if process.stdout else ""
    wall, after = time.perf_counter() - began, os.times()
    if process.returncode:
        return None
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    # The system adds up the processes that were waited for; those of Ray are left to end by themselves.
    cpu = max(cpu, sum(seen_s.values()))
    lines = output.strip().splitlines()
    added = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak / 1024, "work_s": wall, **added}


def _observe(pid: int, seen_s: dict[int, float]) -> int:
    """Returns the peak resident memory in kB of a process and its descendants, added up.

    Args:
        pid: The process.
        seen_s: CPU seconds so far of each process, which is brought up to date.
    """
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            children = " ".join(path.read_text() for path in Path(f"/proc/{one}/task").glob("*/children"))
            seen_s[one] = cpu_s(one)
        except OSError:  # it ended meanwhile
            continue
        found = _FIELD.search(status)
        total += int(found[1]) if found else 0
        waiting += map(int, children.split())
    return total

"""Processor time that is idle otherwise: the lowest priority, and a pause while the container is being throttled."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

CGROUP_CPU_STAT = Path("/sys/fs/cgroup/cpu.stat")
# Seconds without work after the container has used up its quota.
PAUSE_S = 1.0
# Niceness of the load: it ends in any case, as it does not on idle processors alone, and takes little from others.
_LOAD_NICENESS = 10
_LOWEST_NICENESS = 19


def lower_priority() -> None:
    """Gives this process, and the threads that it starts, a low priority."""
    _set_niceness(_LOAD_NICENESS)


def run_only_when_idle() -> None:
    """Gives this thread the lowest priority: whatever else can run comes first, at once.

    Where the system does not allow the policy, the lowest niceness counts, with about a hundredth of a share.
    """
    _set_niceness(_LOWEST_NICENESS)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _set_niceness(niceness: int) -> None:
    # On Linux, that of the calling thread alone.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


class QuotaWatch:
    """Pauses while the processor quota of the container is used up, which a low priority does not prevent."""

    def __init__(self, path: Path = CGROUP_CPU_STAT, sleep: Callable[[float], None] = time.sleep) -> None:
        """Begins to watch.

        Args:
            path: The statistics of the control group.
            sleep: Waits for a number of seconds.
        """
        self._path = path
        self._sleep = sleep
        self._throttled = self._read()

    def wait(self) -> None:
        """Returns at once, or after a pause if the container was throttled since the last call."""
        while (throttled := self._read()) > self._throttled:
            self._throttled = throttled
            self._sleep(PAUSE_S)

    def _read(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in self._path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "nr_throttled":
                    return int(value)
        return 0

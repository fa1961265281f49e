"""Low priority, and pauses while the container is throttled."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from polyhead_server.candidate.idle import PAUSE_S, QuotaWatch, lower_priority, run_only_when_idle


def write(path: Path, throttled: int) -> None:
    path.write_text(f"usage_usec 5\nnr_periods 9\nnr_throttled {throttled}\n")


def test_work_pauses_as_long_as_the_quota_is_used_up(tmp_path: Path) -> None:
    stat = tmp_path / "cpu.stat"
    write(stat, 3)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        write(stat, 5)

    watch = QuotaWatch(stat, sleep)
    watch.wait()
    assert not pauses
    write(stat, 4)
    watch.wait()
    assert pauses == [PAUSE_S, PAUSE_S]
    watch.wait()
    assert len(pauses) == 2


def test_machine_without_control_groups_never_pauses(tmp_path: Path) -> None:
    QuotaWatch(tmp_path / "missing", lambda _: None).wait()


def test_thread_runs_only_when_idle() -> None:
    found: list[int] = []

    def run() -> None:
        lower_priority()
        found.append(os.getpriority(os.PRIO_PROCESS, 0))
        run_only_when_idle()
        found.extend((os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)))

    before = os.sched_getscheduler(0)
    # The priority of a thread cannot be raised again.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0] >= 10
    assert found[1:] == [19, os.SCHED_IDLE]
    assert os.sched_getscheduler(0) == before

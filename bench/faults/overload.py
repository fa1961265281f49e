"""More load than a server can bear."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from typing import Any

from serving import DEMO, HERE

from .case import Finding, Place, case
from .processes import rss_mb, running, thread_cpu_s

_DEADLINE_S = 0.5
_TIMES = (1, 2, 5, 10)
# Admission that admits everything.
_OFF = ("--max-queue-s", "1e9", "--max-queue-tokens", "1000000000")
Level = dict[str, float]


@case(
    "overload",
    fault="messages of 16 texts at 1, 2, 5 and 10 times the capacity, each worth nothing after 500 ms",
    expected="goodput stays above 0.8 of its peak, what is accepted comes in time, memory stays",
)
async def overload(place: Place) -> Finding:
    """The server on one core, the load on another."""
    capacity, levels = await _levels(place, _TIMES)
    peak = max(one["good_per_s"] for one in levels.values())
    shares = {times: one["good_per_s"] / peak for times, one in levels.items()}
    _, without = await _levels(place, (_TIMES[-1],), *_OFF, capacity=capacity, secret=True)
    collapsed = without[_TIMES[-1]]["good_per_s"] / peak
    most = levels[_TIMES[-1]]
    grown_mb = most["rss_mb"] - levels[1]["rss_mb"]
    return Finding(
        seen=f"goodput {', '.join(f'{share:.2f} at {times}x' for times, share in shares.items())} of the peak "
        f"({peak:.0f} texts/s); p99 of the accepted {max(one['p99_ms'] for one in levels.values()):.0f} ms; a refused "
        f"text costs {_refusal_us(levels):.0f} us of CPU; {grown_mb:+.0f} MB from 1x to 10x",
        passed=min(shares.values()) >= 0.8
        and max(one["p99_ms"] for one in levels.values()) <= 1000 * _DEADLINE_S
        and not any(one["failed"] for one in levels.values()),
        control=f"a server without bounds that is not told the deadline: {collapsed:.2f} of the peak at 10x",
        control_failed=collapsed < 0.5,
        figures={
            "capacity_items_per_s": capacity,
            **{f"goodput_share_{times}x": share for times, share in shares.items()},
            **{f"p99_ms_{times}x": one["p99_ms"] for times, one in levels.items()},
            **{f"rss_mb_{times}x": one["rss_mb"] for times, one in levels.items()},
            **{
                f"refused_share_{times}x": one["refused_per_s"] / (16 * one["messages_per_s"])
                for times, one in levels.items()
            },
            **{
                f"expired_share_{times}x": one["expired_per_s"] / (16 * one["messages_per_s"])
                for times, one in levels.items()
            },
            **{f"client_cpu_{times}x": one["client_cpu"] for times, one in levels.items()},
            **{f"client_late_ms_{times}x": one["latest_ms"] for times, one in levels.items()},
            "refused_text_cpu_us": _refusal_us(levels),
            "control_goodput_share_10x": collapsed,
            "control_rss_mb": without[_TIMES[-1]]["rss_mb"],
        },
    )


async def _levels(
    place: Place, times: tuple[int, ...], *flags: str, capacity: float = 0.0, secret: bool = False
) -> tuple[float, dict[int, Level]]:
    """A server of its own under each load in turn; returns its capacity in items a second and what each load saw."""
    ours, theirs = sorted(os.sched_getaffinity(0))[:2]
    seconds = place.many(8, 4)
    found: dict[int, Level] = {}
    async with running(
        place.bundle, place.folder, "--threads", "1", *flags, wrap=["taskset", "-c", str(ours)]
    ) as server:
        pid = server.process.pid
        closed = ["--in-flight", "4", "--deadline-s", "10", "--seconds", str(seconds)]
        # The first run also warms up.
        capacity = capacity or (await _flood(theirs, server.target, *closed))["good_per_s"]
        for one in times:
            load = ["--rate", str(one * capacity / 16), "--seconds", str(seconds), *(["--secret"] if secret else [])]
            before = thread_cpu_s(pid)
            found[one] = await _flood(theirs, server.target, *load)
            used = sorted(seconds - before.get(tid, 0.0) for tid, seconds in thread_cpu_s(pid).items())
            # The compute thread takes most; everything else is the event loop's and gRPC's.
            found[one] |= {"rss_mb": rss_mb(pid), "other_cpu_per_s": sum(used[:-1]) / (seconds + 1)}
    return capacity, found


async def _flood(core: int, target: str, *flags: str) -> dict[str, Any]:
    command = ["taskset", "-c", str(core), sys.executable, "-m", "faults.flood", target, str(DEMO), *flags]
    process = await asyncio.create_subprocess_exec(*command, cwd=HERE, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the load ended with {process.returncode}")
    figures: dict[str, Any] = json.loads(output)
    return figures


def _refusal_us(levels: dict[int, Level]) -> float:
    """CPU that a refused text costs, outside of the compute thread; NaN where none was refused."""
    least, most = levels[_TIMES[0]], levels[_TIMES[-1]]
    refused = most["refused_per_s"] + most["expired_per_s"]
    # What the answered ones cost grows with their number.
    answered = least["other_cpu_per_s"] * most["good_per_s"] / max(least["good_per_s"], 1e-9)
    return 1e6 * (most["other_cpu_per_s"] - answered) / refused if refused > 0 else math.nan

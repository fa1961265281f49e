"""More load than a server can bear."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from typing import Any

from bench.harness.texts import DEMO_TEXTS, ROOT

from .processes import rss_mb, run_server, thread_cpu_s
from .scenario import Context, Verdict, scenario

_DEADLINE_S = 0.5
_TIMES = (1, 2, 5, 10)
# Admission that admits everything.
_OFF = ("--max-queue-s", "1e9", "--max-queue-tokens", "1000000000")
# Of the best of the four.
_LEAST = 0.8
# What arrives at random at the rate of the capacity cannot all be answered in time.
_NEAR_CAPACITY = 0.9
_TOLD = ("p50_ms", "p99_ms", "refused_per_s", "expired_per_s", "rss_mb", "client_cpu", "latest_ms")
Level = dict[str, float]


@scenario(
    "overload",
    fault="messages of 16 texts at 1, 2, 5 and 10 times the capacity, each worth nothing after 500 ms",
    expected="goodput stays above 0.8 of its peak, what is accepted comes in time, memory stays",
    timed=True,
)
async def overload(context: Context) -> Verdict:
    """The server on one core, the load on another; the capacity is measured anew before and after each load."""
    levels = await _levels(context, _TIMES)
    shares = {times: _share(one) for times, one in levels.items()}
    peak = max(shares.values())
    (without,) = (await _levels(context, _TIMES[-1:], *_OFF, secret=True)).values()
    collapsed = _share(without)
    slowest_ms = max(one["p99_ms"] for one in levels.values())
    grown_mb = levels[_TIMES[-1]]["rss_mb"] - levels[_TIMES[0]]["rss_mb"]
    return Verdict(
        observed=f"goodput {', '.join(f'{share:.2f} at {times}x' for times, share in shares.items())} of what could be; "
        f"p99 of the accepted {slowest_ms:.0f} ms; a refused text costs {_refusal_us(levels):.0f} us of CPU; "
        f"{grown_mb:+.0f} MB from 1x to 10x",
        # The client's own timer says when an answer is late, and is late itself.
        passed=min(shares.values()) >= _LEAST * max(peak, _NEAR_CAPACITY)
        and slowest_ms <= 1050 * _DEADLINE_S
        and not any(one["failed"] for one in levels.values()),
        control=f"a server without bounds that is not told the deadline: {collapsed:.2f} at {_TIMES[-1]}x",
        control_failed=collapsed < 0.5,
        figures={
            "capacity_items_per_s": levels[1]["capacity_per_s"],
            **{f"goodput_share_{times}x": share for times, share in shares.items()},
            **{f"{name}_{times}x": one[name] for name in _TOLD for times, one in levels.items()},
            "refused_text_cpu_us": _refusal_us(levels),
            "control_goodput_share_10x": collapsed,
            "control_rss_mb": without["rss_mb"],
        },
    )


async def _levels(context: Context, times: tuple[int, ...], *flags: str, secret: bool = False) -> dict[int, Level]:
    """A server of its own under each load in turn; returns what each load saw, with the capacity around it."""
    ours, theirs = sorted(os.sched_getaffinity(0))[:2]
    seconds = context.scaled(8, 4)
    found: dict[int, Level] = {}
    flags = ("--threads", "1", *flags)
    async with run_server(context.bundle, context.work_dir, *flags, wrap=["taskset", "-c", str(ours)]) as server:
        pid = server.process.pid

        async def capacity() -> float:
            closed = ("--in-flight", "4", "--deadline-s", "10", "--seconds", str(seconds / 2))
            return float((await _flood(theirs, server.target, *closed))["good_per_s"])

        await capacity()
        for one in times:
            now = await capacity()
            load = ["--rate", str(one * now / 16), "--seconds", str(seconds), *(["--secret"] if secret else [])]
            before = thread_cpu_s(pid)
            found[one] = await _flood(theirs, server.target, *load)
            used = sorted(cpu_s - before.get(tid, 0.0) for tid, cpu_s in thread_cpu_s(pid).items())
            # The compute thread takes most; everything else is the event loop's and gRPC's.
            found[one] |= {"rss_mb": rss_mb(pid), "other_cpu_per_s": sum(used[:-1]) / (seconds + 1)}
            found[one]["capacity_per_s"] = now if secret else (now + await capacity()) / 2
    return found


def _share(level: Level) -> float:
    """Texts answered in time, over those that could be: chance may bring fewer than the capacity."""
    return level["good_per_s"] / min(level["capacity_per_s"], 16 * level["messages_per_s"])


async def _flood(core: int, target: str, *flags: str) -> dict[str, Any]:
    command = [
        "taskset",
        "-c",
        str(core),
        sys.executable,
        "-m",
        "tests.reliability.flood",
        target,
        str(DEMO_TEXTS),
        *flags,
    ]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
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

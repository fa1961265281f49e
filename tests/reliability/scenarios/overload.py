"""More load than a server can handle."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from bench.harness.texts import DEMO_TEXTS, ROOT
from tests.reliability.processes import rss_mb, run_server, thread_cpu_s
from tests.reliability.scenario import Context, Verdict, scenario

_DEADLINE_S = 0.5
_LOAD_FACTORS = (1, 2, 5, 10)
# Flags that disable admission control.
_UNBOUNDED = ("--max-queue-s", "1e9", "--max-queue-tokens", "1000000000")
# Minimum goodput at every level, as a share of the best of the four levels.
_MIN_GOODPUT = 0.8
# Goodput to expect at the capacity: with random arrivals at that rate, some messages cannot be answered in time.
_GOODPUT_AT_CAPACITY = 0.9
# Factor on the deadline for the latency that the client measures: its own timer is late, too.
_LATENCY_MARGIN = 1.05
_LEVEL_FIGURES = ("p50_ms", "p99_ms", "refused_per_s", "expired_per_s", "rss_mb", "client_cpu", "max_send_delay_ms")
Level = dict[str, float]


@scenario(
    "overload",
    fault="Messages of 16 texts at 1, 2, 5 and 10 times the capacity, with a deadline of 500 ms",
    expected="Goodput stays above 0.8 of its peak, accepted messages are answered in time and memory does not grow",
    timed=True,
)
async def overload(context: Context) -> Verdict:
    """Runs the server on one core and the load on another; measures the capacity before and after each load.

    The control is a server without admission control that does not receive the deadline.
    """
    levels = await _levels(context, _LOAD_FACTORS)
    shares = {factor: _share(one) for factor, one in levels.items()}
    peak = max(shares.values())
    (unbounded,) = (await _levels(context, _LOAD_FACTORS[-1:], *_UNBOUNDED, hide_deadline=True)).values()
    collapsed = _share(unbounded)
    slowest_ms = max(one["p99_ms"] for one in levels.values())
    growth_mb = levels[_LOAD_FACTORS[-1]]["rss_mb"] - levels[_LOAD_FACTORS[0]]["rss_mb"]
    return Verdict(
        observed=f"goodput {', '.join(f'{share:.2f} at {factor}x' for factor, share in shares.items())} of the texts "
        f"that could be answered; the highest p99 of accepted messages is {slowest_ms:.0f} ms; a refused text costs "
        f"{_refusal_us(levels):.0f} us of CPU; memory {growth_mb:+.0f} MB from 1x to 10x",
        passed=min(shares.values()) >= _MIN_GOODPUT * max(peak, _GOODPUT_AT_CAPACITY)
        and slowest_ms <= 1000 * _LATENCY_MARGIN * _DEADLINE_S
        and not any(one["failed"] for one in levels.values()),
        control=f"without admission control, and with the deadline hidden from the server: goodput {collapsed:.2f} at "
        f"{_LOAD_FACTORS[-1]}x",
        control_failed=collapsed < 0.5,
        figures={
            "capacity_items_per_s": levels[1]["capacity_per_s"],
            **{f"goodput_share_{factor}x": share for factor, share in shares.items()},
            **{f"{name}_{factor}x": one[name] for name in _LEVEL_FIGURES for factor, one in levels.items()},
            "refused_text_cpu_us": _refusal_us(levels),
            "control_goodput_share_10x": collapsed,
            "control_rss_mb": unbounded["rss_mb"],
        },
    )


async def _levels(
    context: Context, factors: Sequence[int], *flags: str, hide_deadline: bool = False
) -> dict[int, Level]:
    """Runs a server under each load in turn; returns the figures of each load, and the capacity around it."""
    server_core, load_core = sorted(os.sched_getaffinity(0))[:2]
    seconds = context.scaled(8, 4)
    levels: dict[int, Level] = {}
    flags = ("--threads", "1", *flags)
    async with run_server(context.bundle, context.work_dir, *flags, wrap=["taskset", "-c", str(server_core)]) as server:
        pid = server.process.pid

        async def capacity() -> float:
            closed = ("--in-flight", "4", "--deadline-s", "10", "--seconds", str(seconds / 2))
            return float((await _flood(load_core, server.target, *closed))["good_per_s"])

        await capacity()
        for factor in factors:
            before_load = await capacity()
            load = [
                "--rate",
                str(factor * before_load / 16),
                "--seconds",
                str(seconds),
                *(["--hide-deadline"] if hide_deadline else []),
            ]
            before = thread_cpu_s(pid)
            levels[factor] = await _flood(load_core, server.target, *load)
            used = sorted(cpu_s - before.get(tid, 0.0) for tid, cpu_s in thread_cpu_s(pid).items())
            # The compute thread uses the most CPU; the rest belongs to the event loop and gRPC.
            levels[factor] |= {"rss_mb": rss_mb(pid), "other_cpu_per_s": sum(used[:-1]) / (seconds + 1)}
            levels[factor]["capacity_per_s"] = before_load if hide_deadline else (before_load + await capacity()) / 2
    return levels


def _share(level: Level) -> float:
    """Texts answered in time as a share of those that could be; at random, fewer than the capacity may arrive."""
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
        raise SystemExit(f"the load generator exited with code {process.returncode}")
    figures: dict[str, Any] = json.loads(output)
    return figures


def _refusal_us(levels: dict[int, Level]) -> float:
    """CPU microseconds per refused text, without the compute thread; NaN if none was refused."""
    lowest, highest = levels[_LOAD_FACTORS[0]], levels[_LOAD_FACTORS[-1]]
    refused_per_s = highest["refused_per_s"] + highest["expired_per_s"]
    # The cost of the answered texts is proportional to their number.
    answered_cpu_per_s = lowest["other_cpu_per_s"] * highest["good_per_s"] / max(lowest["good_per_s"], 1e-9)
    return 1e6 * (highest["other_cpu_per_s"] - answered_cpu_per_s) / refused_per_s if refused_per_s > 0 else math.nan

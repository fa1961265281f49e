"""Workers that are killed with SIGKILL, and what the scenarios of fronts share with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from polyhead_client import AsyncClient

from tests.reliability.processes import Server, children, run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import PlainClient, Traffic

# The supervisor delays the restart of a process that dies early longer each time; a fresh server after this many kills
# keeps the run short.
KILLS_PER_SERVER = 10
# An engine process that dies before it has served for a second counts as one that cannot serve: after six in a row the
# server gives up.
_SERVED_S = 1.5
# The kernel closes the connections of a killed process at once; the event loop of the client has noticed after this.
_DETECTION_S = 0.25
# Connections are distributed at random: of so many, each front has some.
CONNECTIONS = 8


@scenario(
    "killed workers",
    fault="One of two workers is killed with SIGKILL under load, repeatedly",
    expected="No item of the shipped client fails; without it, only items in flight on connections to the killed "
    "worker fail",
    timed=True,
)
async def killed_workers(context: Context) -> Verdict:
    """Uses the shipped client over several connections; the control uses the stubs without it."""
    return await kill_beside_others(context, context.scaled(50, 4), context.scaled(10, 2), "worker")


async def kill_beside_others(context: Context, kills: int, control_kills: int, role: str) -> Verdict:
    """Kills one of two fronts or workers again and again.

    Args:
        context: That of the scenario.
        kills: Number of kills under the load of the shipped client.
        control_kills: Number of kills under the load of stubs without it.
        role: ``front`` or ``worker``.
    """
    flags = (f"--{role}s", "2")
    back_s: list[float] = []
    items = failures = 0
    covered = True
    for first in range(0, kills, KILLS_PER_SERVER):
        count = min(KILLS_PER_SERVER, kills - first)
        traffic, moments = await kill(context, count, back_s, role, *flags, shipped=True)
        items, failures = items + len(traffic.requests), failures + traffic.failures()
        covered = covered and traffic.covers(*moments)
    plain, moments = await kill(context, control_kills, [], role, *flags)
    lost = [one for one in plain.requests if one.outcome != "correct"]
    # In flight at a kill: sent before it, or before the client could detect it.
    in_flight = [
        one for one in lost if any(one.sent <= moment + _DETECTION_S and one.done >= moment for moment in moments)
    ]
    return Verdict(
        observed=f"{kills} kills, {items:,} items: {failures} without a correct answer; both {role}s serve again after "
        f"{statistics.median(back_s):.1f} s (median; at most {max(back_s):.1f} s)",
        passed=not failures and covered and len(in_flight) == len(lost),
        control=f"stubs without the client: {len(lost)} of {len(plain.requests):,} items failed in {len(moments)} "
        f"kills, {len(in_flight)} of them in flight",
        control_failed=bool(lost),
        figures={
            "kills": kills,
            "items": items,
            "failed_items": failures,
            "plain_failed": len(lost),
            "plain_failed_in_flight": len(in_flight),
            "restart_median_s": statistics.median(back_s),
            "restart_max_s": max(back_s),
        },
    )


async def kill(
    context: Context, kills: int, back_s: list[float], role: str, *flags: str, shipped: bool = False
) -> tuple[Traffic, list[float]]:
    """Kills processes of one server in turn; appends to ``back_s`` how long each was missing."""
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    async with running(context, context.bundle, *flags) as server:
        clients: list[AsyncClient | PlainClient] = (
            [AsyncClient(server.target, connections=4)]
            if shipped
            else [PlainClient(server.target) for _ in range(CONNECTIONS)]
        )
        async with traffic.flowing(clients, calls=8, streams=4):
            await asyncio.gather(traffic.flow_until(100), asyncio.sleep(_SERVED_S))
            for number in range(kills):
                victims = _processes(server, role)
                serving = _count_serving(server)
                moments.append(time.monotonic())
                os.kill(victims[number % len(victims)], signal.SIGKILL)
                await wait_until(partial(is_above, _count_serving, server, serving), "no process is back")
                back_s.append(time.monotonic() - moments[-1])
                await asyncio.gather(traffic.flow_until(100), asyncio.sleep(_SERVED_S))
        for client in clients:
            await client.__aexit__()
    return traffic, moments


@contextlib.asynccontextmanager
async def running(context: Context, bundle: Path, *flags: str) -> AsyncIterator[Server]:
    """Runs a server until all of its processes serve."""
    async with run_server(bundle, context.work_dir, *flags) as server:
        processes = int(flags[1]) + (flags[0] == "--fronts")
        await wait_until(lambda: _count_serving(server) == processes, "not all processes serve")
        yield server


def _processes(server: Server, role: str) -> list[int]:
    """Ids of the processes of a server that play a part; a worker's command line names none."""
    pids = sorted(children(server.process.pid))
    if role == "worker":
        return pids
    return [pid for pid in pids if role.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def _count_serving(server: Server) -> int:
    """Number of processes that have started to serve since the supervisor of this server was started."""
    return len(re.findall(rf" {server.process.pid} .* serves (on .* )?as process ", server.log.read_text()))


def is_above(count: Callable[[Server], int], server: Server, before: int) -> bool:
    return count(server) > before

"""Workers that are killed with SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

from polyhead_client import AsyncClient

from tests.reliability.processes import Server, children, count_listeners, run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import PlainClient, Traffic

_WORKERS = 2
# The supervisor delays the restart of a worker that dies early longer each time; a fresh server after this many kills
# keeps the run short.
_KILLS_PER_SERVER = 10
# The kernel closes the connections of a killed process at once; the event loop of the client has noticed after this.
_DETECTION_S = 0.25


@scenario(
    "killed workers",
    fault="One of two workers is killed with SIGKILL under load, repeatedly",
    expected="No item of the shipped client fails; without it, only items in flight on connections to the killed "
    "worker fail",
    timed=True,
)
async def killed_workers(context: Context) -> Verdict:
    """Uses the shipped client over several connections; the control uses the stubs without it."""
    kills = context.scaled(50, 4)
    restart_s: list[float] = []
    items = failures = 0
    covered = True
    for first in range(0, kills, _KILLS_PER_SERVER):
        traffic, moments = await _kill(context, min(_KILLS_PER_SERVER, kills - first), restart_s, shipped=True)
        items, failures = items + len(traffic.requests), failures + traffic.failures()
        covered = covered and traffic.covers(*moments)
    plain, moments = await _kill(context, context.scaled(10, 2), [], shipped=False)
    lost = [one for one in plain.requests if one.outcome != "correct"]
    # In flight at a kill: sent before it, or before the client could detect it.
    in_flight = [
        one for one in lost if any(one.sent <= moment + _DETECTION_S and one.done >= moment for moment in moments)
    ]
    return Verdict(
        observed=f"{kills} kills, {items:,} items: {failures} without a correct answer; both workers serve again after "
        f"{statistics.median(restart_s):.1f} s (median; at most {max(restart_s):.1f} s)",
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
            "restart_median_s": statistics.median(restart_s),
            "restart_max_s": max(restart_s),
        },
    )


async def _kill(context: Context, kills: int, restart_s: list[float], *, shipped: bool) -> tuple[Traffic, list[float]]:
    """Kills the workers of one server in turn; appends to ``restart_s`` how long each was missing."""
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    async with run_server(context.bundle, context.work_dir, "--workers", str(_WORKERS)) as server:
        await _wait_until_all_serve(server)
        # The kernel assigns connections at random: of eight, each worker has some.
        clients = (
            [AsyncClient(server.target, connections=4)] if shipped else [PlainClient(server.target) for _ in range(8)]
        )
        async with traffic.flowing(clients, calls=8, streams=2 if shipped else 8):
            await traffic.flow_until(100)
            for number in range(kills):
                victim = sorted(children(server.process.pid))[number % _WORKERS]
                moments.append(time.monotonic())
                os.kill(victim, signal.SIGKILL)
                await asyncio.sleep(_DETECTION_S)
                await _wait_until_all_serve(server)
                restart_s.append(time.monotonic() - moments[-1])
                await traffic.flow_until(100)
        for client in clients:
            await client.__aexit__()
    return traffic, moments


async def _wait_until_all_serve(server: Server) -> None:
    await wait_until(lambda: count_listeners(server.port) == _WORKERS, "not all workers restarted")

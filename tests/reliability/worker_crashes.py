"""Workers that are killed without warning."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

from polyhead_client import AsyncClient

from .processes import Server, children, listeners, running, until
from .scenario import Context, Verdict, scenario
from .traffic import PlainClient, Traffic

_WORKERS = 2
# A supervisor lets a worker that dies young wait longer each time: a fresh one after so many keeps the run short.
_KILLS_OF_A_SERVER = 10
# The kernel hangs up for the dead at once; the client's event loop has heard of it after so long.
_HEARD_S = 0.25


@scenario(
    "killed workers",
    fault="a worker of two killed with SIGKILL under load, again and again",
    expected="with the shipped client no item fails; with the stubs alone only what was in flight on the worker's own "
    "connections fails",
    timed=True,
)
async def killed_workers(context: Context) -> Verdict:
    """The shipped client over several connections, and the stubs alone as the control."""
    kills = context.scaled(50, 4)
    back: list[float] = []
    items = bad = 0
    enough = True
    for begun in range(0, kills, _KILLS_OF_A_SERVER):
        traffic, moments = await _kill(context, min(_KILLS_OF_A_SERVER, kills - begun), back, shipped=True)
        items, bad = items + len(traffic.requests), bad + traffic.bad()
        enough = enough and traffic.enough(*moments)
    plain, moments = await _kill(context, context.scaled(10, 2), [], shipped=False)
    lost = [one for one in plain.requests if one.outcome != "right"]
    # In flight at a kill: sent before it, or before the client could hear of it.
    hit = [one for one in lost if any(one.sent <= moment + _HEARD_S and one.done >= moment for moment in moments)]
    return Verdict(
        seen=f"{kills} kills, {items:,} items: {bad} without a right answer; both workers serve again after "
        f"{statistics.median(back):.1f} s (median; at most {max(back):.1f} s)",
        passed=not bad and enough and len(hit) == len(lost),
        control=f"the stubs alone: {len(lost)} of {len(plain.requests):,} items failed in {len(moments)} kills, "
        f"{len(hit)} of them in flight",
        control_failed=bool(lost),
        figures={
            "kills": kills,
            "items": items,
            "bad_items": bad,
            "plain_failed": len(lost),
            "plain_failed_in_flight": len(hit),
            "back_median_s": statistics.median(back),
            "back_most_s": max(back),
        },
    )


async def _kill(context: Context, kills: int, back: list[float], *, shipped: bool) -> tuple[Traffic, list[float]]:
    """Kills the workers of one server in turns; adds to ``back`` how long each was away."""
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    async with running(context.bundle, context.folder, "--workers", str(_WORKERS)) as server:
        await _all_serve(server)
        # The kernel deals connections out by chance: of eight, both workers have some.
        clients = (
            [AsyncClient(server.target, connections=4)] if shipped else [PlainClient(server.target) for _ in range(8)]
        )
        async with traffic.flowing(clients, calls=8, streams=2 if shipped else 8):
            await traffic.flow_until(100)
            for number in range(kills):
                victim = sorted(children(server.process.pid))[number % _WORKERS]
                moments.append(time.monotonic())
                os.kill(victim, signal.SIGKILL)
                await asyncio.sleep(_HEARD_S)
                await _all_serve(server)
                back.append(time.monotonic() - moments[-1])
                await traffic.flow_until(100)
        for client in clients:
            await client.__aexit__()
    return traffic, moments


async def _all_serve(server: Server) -> None:
    await until(lambda: listeners(server.port) == _WORKERS, "not all workers came back")

"""Fronts and one engine process: either is killed, and the model is replaced for all fronts at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

from polyhead_client import AsyncClient

from tests.reliability.processes import Server, children, run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.scenarios.restarts_and_reloads import replace_link
from tests.reliability.traffic import Caller, PlainClient, Traffic

# The supervisor delays the restart of a process that dies early longer each time; a fresh server after this many kills
# keeps the run short.
_KILLS_PER_SERVER = 10
# An engine process that dies before it has served for a second counts as one that cannot serve: after six in a row the
# server gives up.
_SERVED_S = 1.5
# The kernel closes the connections of a killed process at once; the event loop of the client has noticed after this.
_DETECTION_S = 0.25
# Connections are distributed at random: of so many, each front has some.
_CONNECTIONS = 8


@scenario(
    "killed engine process",
    fault="The engine process behind two fronts is killed with SIGKILL under load, repeatedly",
    expected="No item fails, also of stubs without retries: the fronts keep what they accepted until the next engine "
    "process computes it",
    timed=True,
)
async def killed_engine(context: Context) -> Verdict:
    """Uses the stubs without the shipped client. The control kills workers that have a model each."""
    kills = context.scaled(50, 2)
    back_s: list[float] = []
    items = failures = 0
    covered = True
    outcomes: Counter[str] = Counter()
    for first in range(0, kills, _KILLS_PER_SERVER):
        count = min(_KILLS_PER_SERVER, kills - first)
        traffic, moments = await _kill(context, count, back_s, "engine", "--fronts", "2")
        items, failures = items + len(traffic.requests), failures + traffic.failures()
        outcomes += traffic.outcomes()
        covered = covered and traffic.covers(*moments)
    control, _ = await _kill(context, context.scaled(5, 2), [], "worker", "--workers", "2")
    return Verdict(
        observed=f"{kills} kills, {items:,} items of stubs without retries: {failures} without a correct answer"
        f"{_reasons(outcomes)}; the next engine process serves after {statistics.median(back_s):.1f} s (median; at "
        f"most {max(back_s):.1f} s)",
        passed=not failures and covered,
        control=f"killed workers with a model each: {control.failures()} of {len(control.requests):,} items of the "
        "same stubs failed",
        control_failed=control.failures() > 0,
        figures={
            "kills": kills,
            "items": items,
            "failed_items": failures,
            "back_median_s": statistics.median(back_s),
            "back_max_s": max(back_s),
        },
    )


@scenario(
    "killed fronts",
    fault="One of two fronts is killed with SIGKILL under load, repeatedly",
    expected="No item of the shipped client fails; without it, only items in flight on connections to the killed "
    "front fail",
    timed=True,
)
async def killed_fronts(context: Context) -> Verdict:
    """Uses the shipped client over several connections; the control uses the stubs without it."""
    kills = context.scaled(50, 2)
    back_s: list[float] = []
    items = failures = 0
    covered = True
    for first in range(0, kills, _KILLS_PER_SERVER):
        count = min(_KILLS_PER_SERVER, kills - first)
        traffic, moments = await _kill(context, count, back_s, "front", "--fronts", "2", shipped=True)
        items, failures = items + len(traffic.requests), failures + traffic.failures()
        covered = covered and traffic.covers(*moments)
    plain, moments = await _kill(context, context.scaled(5, 2), [], "front", "--fronts", "2")
    lost = [one for one in plain.requests if one.outcome != "correct"]
    in_flight = [
        one for one in lost if any(one.sent <= moment + _DETECTION_S and one.done >= moment for moment in moments)
    ]
    return Verdict(
        observed=f"{kills} kills, {items:,} items: {failures} without a correct answer; both fronts serve again after "
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
            "back_median_s": statistics.median(back_s),
        },
    )


@scenario(
    "reloads of fronts",
    fault="The bundle behind four fronts is replaced by one with another head, then SIGHUP, under load",
    expected="No item fails; once any answer names the new version, no item that is sent later, to whichever front, is "
    "answered by the old one",
)
async def reloads_of_fronts(context: Context) -> Verdict:
    """Uses the stubs without the shipped client. The control reloads workers, which change one after the other."""
    times = context.scaled(20, 2)
    traffic, moments, stale = await _reload(context, times, "--fronts", "4")
    _, _, control_stale = await _reload(context, context.scaled(4, 2), "--workers", "2")
    outcomes = traffic.outcomes()
    return Verdict(
        observed=f"{times} reloads, {len(traffic.requests):,} items: {traffic.failures() - outcomes['incorrect']} "
        f"failed, {outcomes['incorrect']} incorrect, {stale} answered by the old version after the new one had "
        "answered",
        passed=not traffic.failures() and not stale and traffic.covers(*moments),
        control=f"workers that reload one after the other: {control_stale} items answered by the old version after "
        "the new one had answered",
        control_failed=control_stale > 0,
        figures={
            "reloads": times,
            "items": len(traffic.requests),
            "failed_items": traffic.failures(),
            "stale_items": stale,
        },
    )


async def _kill(
    context: Context, kills: int, back_s: list[float], role: str, *flags: str, shipped: bool = False
) -> tuple[Traffic, list[float]]:
    """Kills processes of one server in turn; appends to ``back_s`` how long each was missing."""
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    async with _running(context, context.bundle, *flags) as server:
        clients: list[AsyncClient | PlainClient] = (
            [AsyncClient(server.target, connections=4)]
            if shipped
            else [PlainClient(server.target) for _ in range(_CONNECTIONS)]
        )
        async with traffic.flowing(clients, calls=8, streams=4):
            await asyncio.gather(traffic.flow_until(100), asyncio.sleep(_SERVED_S))
            for number in range(kills):
                victims = _processes(server, role)
                serving = _count_serving(server)
                moments.append(time.monotonic())
                os.kill(victims[number % len(victims)], signal.SIGKILL)
                await wait_until(partial(_is_above, _count_serving, server, serving), "no process is back")
                back_s.append(time.monotonic() - moments[-1])
                await asyncio.gather(traffic.flow_until(100), asyncio.sleep(_SERVED_S))
        for client in clients:
            await client.__aexit__()
    return traffic, moments


async def _reload(context: Context, times: int, *flags: str) -> tuple[Traffic, list[float], int]:
    """Alternates two bundles behind one link.

    Returns:
        The traffic, the times of the signals, and the number of items that the old version answered too late.
    """
    link = context.work_dir / f"served{flags[0]}"
    replace_link(link, context.bundle)
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    expected = [context.reference_answers.versions[number % 2] for number in range(1, times + 1)]
    async with _running(context, link, *flags) as server:
        clients: Sequence[Caller] = [PlainClient(server.target) for _ in range(_CONNECTIONS)]
        async with traffic.flowing(clients, calls=_CONNECTIONS, streams=_CONNECTIONS):
            await traffic.flow_until(100)
            for number in range(times):
                replace_link(link, (context.other_bundle, context.bundle)[number % 2])
                reloads = _count_reloads(server)
                moments.append(time.monotonic())
                server.process.send_signal(signal.SIGHUP)
                await wait_until(partial(_is_above, _count_reloads, server, reloads), "nothing was reloaded")
                await traffic.flow_until(100)
        for client in clients:
            if isinstance(client, PlainClient):
                await client.__aexit__()
    return traffic, moments, _count_stale(traffic, moments, expected)


def _count_stale(traffic: Traffic, moments: Sequence[float], expected: Sequence[str]) -> int:
    """Number of items that were sent after an answer of a new version, and answered by the version before."""
    stale = 0
    for (begin, end), version in zip(itertools.pairwise([*moments, float("inf")]), expected, strict=True):
        answered = [one for one in traffic.requests if one.outcome == "correct" and begin < one.done < end]
        first = min((one.done for one in answered if one.version == version), default=float("inf"))
        stale += sum(one.version != version for one in answered if one.sent > first)
    return stale


@contextlib.asynccontextmanager
async def _running(context: Context, bundle: Path, *flags: str) -> AsyncIterator[Server]:
    """Runs a server until all of its processes serve."""
    async with run_server(bundle, context.work_dir, *flags) as server:
        processes = int(flags[1]) + (flags[0] == "--fronts")
        await wait_until(lambda: _count_serving(server) == processes, "not all processes serve")
        yield server


def _reasons(outcomes: Counter[str]) -> str:
    """Says how the items without a correct answer ended; a call has a deadline of 20 s."""
    found = [f"{outcome} {count}" for outcome, count in outcomes.items() if outcome != "correct"]
    return f" ({', '.join(found)})" if found else ""


def _processes(server: Server, role: str) -> list[int]:
    """Ids of the processes of a server that play a part; a worker's command line names none."""
    pids = sorted(children(server.process.pid))
    if role == "worker":
        return pids
    return [pid for pid in pids if role.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def _count_serving(server: Server) -> int:
    """Number of processes that have started to serve since the supervisor of this server was started."""
    return len(re.findall(rf" {server.process.pid} .* serves (on .* )?as process ", server.log.read_text()))


def _count_reloads(server: Server) -> int:
    log = server.log.read_text()
    return len(re.findall(rf" {server.process.pid} .* (the engine has reloaded|workers have reloaded)", log))


def _is_above(count: Callable[[Server], int], server: Server, before: int) -> bool:
    return count(server) > before

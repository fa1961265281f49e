"""Fronts and one engine process: either is killed, and the model is replaced for all fronts at once."""

from __future__ import annotations

import itertools
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from tests.reliability.processes import Server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.scenarios.restarts_and_reloads import replace_link
from tests.reliability.traffic import Caller, PlainClient, Traffic

from .worker_crashes import CONNECTIONS, KILLS_PER_SERVER, is_above, kill, kill_beside_others, running


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
    for first in range(0, kills, KILLS_PER_SERVER):
        count = min(KILLS_PER_SERVER, kills - first)
        traffic, moments = await kill(context, count, back_s, "engine", "--fronts", "2")
        items, failures = items + len(traffic.requests), failures + traffic.failures()
        outcomes += traffic.outcomes()
        covered = covered and traffic.covers(*moments)
    control, _ = await kill(context, context.scaled(5, 2), [], "worker", "--workers", "2")
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
    return await kill_beside_others(context, context.scaled(50, 2), context.scaled(5, 2), "front")


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


async def _reload(context: Context, times: int, *flags: str) -> tuple[Traffic, list[float], int]:
    """Alternates two bundles behind one link.

    Returns:
        The traffic, the times of the signals, and the number of items that the old version answered too late.
    """
    link = context.work_dir / f"served{flags[0]}"
    replace_link(link, context.bundle)
    traffic, moments = Traffic(context.reference_answers, context.texts), []
    expected = [context.reference_answers.versions[number % 2] for number in range(1, times + 1)]
    async with running(context, link, *flags) as server:
        clients: Sequence[Caller] = [PlainClient(server.target) for _ in range(CONNECTIONS)]
        async with traffic.flowing(clients, calls=CONNECTIONS, streams=CONNECTIONS):
            await traffic.flow_until(100)
            for number in range(times):
                replace_link(link, (context.other_bundle, context.bundle)[number % 2])
                reloads = _count_reloads(server)
                moments.append(time.monotonic())
                server.process.send_signal(signal.SIGHUP)
                await wait_until(partial(is_above, _count_reloads, server, reloads), "nothing was reloaded")
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
        # Of items that were sent after the signal: one that was accepted before the last reload but one may be answered
        # late, by the model of which this version is another copy.
        first = min((one.done for one in answered if one.version == version and one.sent > begin), default=float("inf"))
        stale += sum(one.version != version for one in answered if one.sent > first)
    return stale


def _reasons(outcomes: Counter[str]) -> str:
    """Says how the items without a correct answer ended; a call has a deadline of 20 s."""
    found = [f"{outcome} {count}" for outcome, count in outcomes.items() if outcome != "correct"]
    return f" ({', '.join(found)})" if found else ""


def _count_reloads(server: Server) -> int:
    log = server.log.read_text()
    return len(re.findall(rf" {server.process.pid} .* (the engine has reloaded|workers have reloaded)", log))

"""Servers that are restarted, or reload another bundle, while they serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from polyhead_client import AsyncClient

from bench.harness.servers import free_port
from tests.reliability.processes import run_server, start_server, stop_server
from tests.reliability.reference_answers import version
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Caller, PlainClient, Traffic

_RELOAD_S = 60.0


@scenario(
    "rolling restarts",
    fault="Two servers behind one name are restarted in turn with SIGTERM under load",
    expected="No item fails and no answer is incorrect",
)
async def rolling_restarts(context: Context) -> Verdict:
    """Uses the shipped client; the control uses the stubs without it."""
    restarts = context.scaled(10, 1)
    traffic, moments, codes = await _roll(context, restarts, AsyncClient)
    control, _, _ = await _roll(context, context.scaled(4, 1), PlainClient)
    outcomes = traffic.outcomes()
    return Verdict(
        observed=f"{restarts} restarts, {len(traffic.requests):,} items: {_errors(outcomes)} failed, "
        f"{outcomes['incorrect']} incorrect; exit codes {sorted(set(codes))}",
        passed=not traffic.failures() and traffic.covers(*moments) and set(codes) == {0},
        control=f"stubs without retries: {_errors(control.outcomes())} of {len(control.requests):,} items failed",
        control_failed=_errors(control.outcomes()) > 0,
        figures={"restarts": restarts, "items": len(traffic.requests), "failed_items": traffic.failures()},
    )


async def _roll(
    context: Context, restarts: int, connect: Callable[[str], AsyncClient | PlainClient]
) -> tuple[Traffic, list[float], list[int]]:
    """Restarts two servers in turn under load; returns the traffic, the times of the signals and the exit codes."""
    targets = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    servers = [start_server(context.bundle, context.work_dir / "server.log", target=target) for target in targets]
    traffic, moments, codes = Traffic(context.reference_answers, context.texts), [], []
    try:
        await asyncio.gather(*(server.wait_until_serving() for server in servers))
        client = connect(f"ipv4:{','.join(targets)}")
        async with client, traffic.flowing([client]):
            await traffic.flow_until(100)
            for number in range(restarts):
                moments.append(time.monotonic())
                codes.append(await servers[number % 2].stop())
                servers[number % 2] = start_server(
                    context.bundle, context.work_dir / "server.log", target=targets[number % 2]
                )
                await servers[number % 2].wait_until_serving()
                await traffic.flow_until(100)
    finally:
        await asyncio.gather(*map(stop_server, servers))
    return traffic, moments, codes


def _errors(outcomes: Counter[str]) -> int:
    """Number of items that ended with an error or without any answer."""
    return sum(outcomes.values()) - outcomes["correct"] - outcomes["incorrect"]


@scenario(
    "reloads",
    fault="The symbolic link to the bundle is replaced by one to a bundle with another head, then SIGHUP, under load",
    expected="No item fails; every answer is the correct answer of the version that it names; once the server reports "
    "the new version, it answers no newly sent item with the old one",
)
async def reloads(context: Context) -> Verdict:
    """Alternates two bundles behind one link. The control judges answers that name the wrong version."""
    times = context.scaled(20, 2)
    link = context.work_dir / "served"
    replace_link(link, context.bundle)
    traffic = Traffic(context.reference_answers, context.texts)
    durations: list[float] = []
    # Per version: time of the signal, until which only the previous version may answer; time from which on the
    # version is in force; the version.
    changes: list[tuple[float, float, str]] = []
    async with (
        run_server(link, context.work_dir) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client]),
    ):
        await traffic.flow_until(100)
        for number in range(times):
            expected = context.reference_answers.versions[(number + 1) % 2]
            replace_link(link, (context.other_bundle, context.bundle)[number % 2])
            signalled = time.monotonic()
            server.process.send_signal(signal.SIGHUP)
            await _wait_for_version(client, expected)
            changes.append((signalled, time.monotonic(), expected))
            durations.append(changes[-1][1] - signalled)
            await traffic.flow_until(100)
        forged = await _judge_forged(context, client)
    stale = _stale(traffic, changes, context.reference_answers.versions[0])
    outcomes = traffic.outcomes()
    return Verdict(
        observed=f"{times} reloads, {len(traffic.requests):,} items: {_errors(outcomes)} failed, "
        f"{outcomes['incorrect']} incorrect, {stale} answered by a version that was not in force; a reload took "
        f"{statistics.median(durations):.1f} s",
        passed=not traffic.failures() and not stale and traffic.covers(*(signalled for signalled, _, _ in changes)),
        control=f"answers that name the other version: {forged['incorrect']} of {forged.total()} are judged incorrect",
        control_failed=forged["incorrect"] == forged.total() > 0,
        figures={
            "reloads": times,
            "items": len(traffic.requests),
            "failed_items": traffic.failures(),
            "stale_items": stale,
            "reload_median_s": statistics.median(durations),
        },
    )


def replace_link(link: Path, bundle: Path) -> None:
    """Atomically makes a symbolic link point to another bundle."""
    fresh = link.with_suffix(".new")
    fresh.symlink_to(bundle.resolve())
    os.replace(fresh, link)  # noqa: PTH105 - Path.replace would do the same


async def _wait_for_version(client: AsyncClient, expected: str) -> None:
    end = time.monotonic() + _RELOAD_S
    while version((await client.info()).fingerprints) != expected:
        if time.monotonic() > end:
            raise RuntimeError(f"the server did not load the new bundle within {_RELOAD_S:g} s")
        await asyncio.sleep(0.02)


def _stale(traffic: Traffic, changes: Sequence[tuple[float, float, str]], first: str) -> int:
    """Number of items that were answered by a version that was not in force when they were sent."""
    stale = 0
    spans = [(0.0, 0.0, first), *changes, (float("inf"), float("inf"), "")]
    for (_, begins, current), (ends, _, _) in itertools.pairwise(spans):
        # Items that wait while the version changes are left out: the new version may answer them.
        stale += sum(
            one.version != current
            for one in traffic.requests
            if one.outcome == "correct" and begins <= one.sent and one.done < ends
        )
    return stale


async def _judge_forged(context: Context, client: Caller) -> Counter[str]:
    """Judges genuine answers whose fingerprints are replaced by those of the other version."""
    texts = context.texts[:50]
    answers = await client.analyze([(str(number), text) for number, text in enumerate(texts)], deadline_s=20)
    verdicts: Counter[str] = Counter()
    for text, answer in zip(texts, answers, strict=True):
        result = answer.unwrap()
        (other,) = set(context.reference_answers.versions) - {version(result.fingerprints)}
        space, *_ = other.split()
        names = sorted(result.fingerprints.heads)
        fingerprints = dataclasses.replace(
            result.fingerprints, embedding_space=space, heads=dict(zip(names, other.split()[1:], strict=True))
        )
        with contextlib.suppress(RuntimeError):
            verdicts[context.reference_answers.judge(text, dataclasses.replace(result, fingerprints=fingerprints))] += 1
    return verdicts

"""Servers that are restarted or given another bundle while they serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from polyhead_client import AsyncClient

from bench.harness.servers import free_port

from .processes import finish, running, start
from .reference_answers import version
from .scenario import Context, Verdict, scenario
from .traffic import Caller, PlainClient, Traffic

_RELOAD_S = 60.0


@scenario(
    "rolling restarts",
    fault="two servers behind one name, restarted in turns with SIGTERM under load",
    expected="no item fails, no answer is wrong",
)
async def rolling_restarts(context: Context) -> Verdict:
    """The shipped client, and the stubs alone as the control."""
    restarts = context.scaled(10, 1)
    traffic, moments, codes = await _roll(context, restarts, AsyncClient)
    control, _, _ = await _roll(context, context.scaled(4, 1), PlainClient)
    answered = traffic.outcomes()
    return Verdict(
        seen=f"{restarts} restarts, {len(traffic.requests):,} items: {_failed(answered)} failed, "
        f"{answered['wrong']} wrong; exit codes {sorted(set(codes))}",
        passed=not traffic.bad() and traffic.enough(*moments) and set(codes) == {0},
        control=f"the stubs without retries: {_failed(control.outcomes())} of {len(control.requests):,} items failed",
        control_failed=_failed(control.outcomes()) > 0,
        figures={"restarts": restarts, "items": len(traffic.requests), "bad_items": traffic.bad()},
    )


async def _roll(
    context: Context, restarts: int, connect: Callable[[str], AsyncClient | PlainClient]
) -> tuple[Traffic, list[float], list[int]]:
    """Restarts two servers in turns under load; returns the traffic, the moments of the signals, the exit codes."""
    targets = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    servers = [start(context.bundle, context.folder / "server.log", target=target) for target in targets]
    traffic, moments, codes = Traffic(context.reference_answers, context.texts), [], []
    try:
        await asyncio.gather(*(server.serving() for server in servers))
        client = connect(f"ipv4:{','.join(targets)}")
        async with client, traffic.flowing([client]):
            await traffic.flow_until(100)
            for number in range(restarts):
                moments.append(time.monotonic())
                codes.append(await servers[number % 2].end())
                servers[number % 2] = start(context.bundle, context.folder / "server.log", target=targets[number % 2])
                await servers[number % 2].serving()
                await traffic.flow_until(100)
    finally:
        await asyncio.gather(*map(finish, servers))
    return traffic, moments, codes


def _failed(outcomes: Counter[str]) -> int:
    return sum(outcomes.values()) - outcomes["right"] - outcomes["wrong"]


@scenario(
    "reloads",
    fault="the bundle behind a link replaced by one with another head, SIGHUP, under load",
    expected="no item fails; every answer is that of the version which it names; once the server tells of the new "
    "version, no item that is sent after that is answered by the old one",
)
async def reloads(context: Context) -> Verdict:
    """Two bundles in turns behind one link."""
    times = context.scaled(20, 2)
    link = context.folder / "served"
    point(link, context.bundle)
    traffic = Traffic(context.reference_answers, context.texts)
    took: list[float] = []
    # From when on a version is in force, and until when nothing but the one before it may answer.
    changes: list[tuple[float, float, str]] = []
    async with (
        running(link, context.folder) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client]),
    ):
        await traffic.flow_until(100)
        for number in range(times):
            wanted = context.reference_answers.versions[(number + 1) % 2]
            point(link, (context.other, context.bundle)[number % 2])
            told = time.monotonic()
            server.process.send_signal(signal.SIGHUP)
            await _until_version(client, wanted)
            changes.append((told, time.monotonic(), wanted))
            took.append(changes[-1][1] - told)
            await traffic.flow_until(100)
        forged = await _judge_forged(context, client)
    stale = _stale(traffic, changes, context.reference_answers.versions[0])
    answered = traffic.outcomes()
    return Verdict(
        seen=f"{times} reloads, {len(traffic.requests):,} items: {_failed(answered)} failed, {answered['wrong']} "
        f"wrong, {stale} of a version that was not in force; a reload took {sorted(took)[len(took) // 2]:.1f} s",
        passed=not traffic.bad() and not stale and traffic.enough(*(told for told, _, _ in changes)),
        control=f"answers that name the other version: {forged['wrong']} of {forged.total()} are found wrong",
        control_failed=forged["wrong"] == forged.total() > 0,
        figures={
            "reloads": times,
            "items": len(traffic.requests),
            "bad_items": traffic.bad(),
            "stale_items": stale,
            "reload_median_s": sorted(took)[len(took) // 2],
        },
    )


def point(link: Path, bundle: Path) -> None:
    """Makes a link lead to another bundle, in one step."""
    fresh = link.with_suffix(".new")
    fresh.symlink_to(bundle.resolve())
    os.replace(fresh, link)  # noqa: PTH105 - Path.replace would do the same


async def _until_version(client: AsyncClient, wanted: str) -> None:
    end = time.monotonic() + _RELOAD_S
    while version((await client.info()).fingerprints) != wanted:
        if time.monotonic() > end:
            raise RuntimeError(f"the server did not take the new bundle within {_RELOAD_S:g} s")
        await asyncio.sleep(0.02)


def _stale(traffic: Traffic, changes: Sequence[tuple[float, float, str]], first: str) -> int:
    """Items that were answered by a version that was not in force when they were sent."""
    stale, before = 0, first
    spans = [(0.0, 0.0, first), *changes, (float("inf"), float("inf"), "")]
    for (_, begins, current), (ends, _, _) in itertools.pairwise(spans):
        # An item that waits while the version changes may be answered by the new one.
        stale += sum(
            one.version != current
            for one in traffic.requests
            if one.outcome == "right" and begins <= one.sent and one.done < ends
        )
        before = current
    return stale if before else 0


async def _judge_forged(context: Context, client: Caller) -> Counter[str]:
    """The control of the comparison: true answers that name the other version must be found wrong."""
    texts = context.texts[:50]
    answers = await client.analyze([(str(number), text) for number, text in enumerate(texts)], deadline_s=20)
    found: Counter[str] = Counter()
    for text, answer in zip(texts, answers, strict=True):
        result = answer.unwrap()
        (other,) = set(context.reference_answers.versions) - {version(result.fingerprints)}
        space, *_ = other.split()
        names = sorted(result.fingerprints.heads)
        fingerprints = dataclasses.replace(
            result.fingerprints, embedding_space=space, heads=dict(zip(names, other.split()[1:], strict=True))
        )
        with contextlib.suppress(RuntimeError):
            found[context.reference_answers.judge(text, dataclasses.replace(result, fingerprints=fingerprints))] += 1
    return found

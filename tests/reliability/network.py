"""Networks that are slow or break, and peers that do not speak HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from polyhead_client import AsyncClient

from .processes import descriptors, rss_mb, running
from .proxy import NetworkConditions, bad_network
from .scenario import Context, Verdict, scenario
from .traffic import PlainClient, Traffic

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@scenario(
    "broken connections",
    fault="a network that resets each connection in the middle of a message",
    expected="with the shipped client no item fails",
)
async def broken_connections(context: Context) -> Verdict:
    """The control: the stubs alone."""
    seconds = context.scaled(20, 3)
    async with running(context.bundle, context.folder) as server:
        found: list[tuple[Traffic, int]] = []
        for connect in (AsyncClient, PlainClient):
            weather = NetworkConditions(break_after=100_000)
            traffic = Traffic(context.reference_answers, context.texts)
            async with bad_network(server.target, weather) as target:
                client: AsyncClient | PlainClient = connect(target)
                async with client, traffic.flowing([client]):
                    await asyncio.sleep(seconds)
                    # The last ones are answered over a network that holds.
                    weather.break_after = 0
            found.append((traffic, weather.breaks))
    (traffic, breaks), (plain, plain_breaks) = found
    return Verdict(
        seen=f"{breaks} resets, {len(traffic.requests):,} items: {traffic.bad()} without a right answer",
        passed=not traffic.bad() and breaks >= 3 and len(traffic.requests) >= 100,
        control=f"the stubs alone: {plain.bad()} of {len(plain.requests):,} items in {plain_breaks} resets",
        control_failed=plain.bad() > 0,
        figures={"resets": breaks, "items": len(traffic.requests), "bad_items": traffic.bad()},
    )


@scenario(
    "slow network",
    fault="200 ms of delay each way, then 8 kB a second",
    expected="slow answers, none wrong, none lost; others on a good network notice nothing",
)
async def slow_network(context: Context) -> Verdict:
    """The control: a deadline that the network cannot meet is not met."""
    seconds = context.scaled(15, 3)
    slow, good = Traffic(context.reference_answers, context.texts), Traffic(context.reference_answers, context.texts)
    weather = NetworkConditions(delay_s=0.2)
    async with (
        running(context.bundle, context.folder) as server,
        bad_network(server.target, weather) as target,
        AsyncClient(target) as far,
        AsyncClient(server.target) as near,
        good.flowing([near], calls=1, items=1, streams=1),
    ):
        async with slow.flowing([far], calls=1, items=1, streams=1):
            await asyncio.sleep(seconds)
            weather.delay_s, weather.bytes_per_s = 0.0, 8_000.0
            await asyncio.sleep(seconds)
            weather.bytes_per_s = 0.0
        weather.delay_s = 0.2
        hurried = 0
        for text in context.texts[:5]:
            try:
                await far.analyze([text], deadline_s=0.1)
            except Exception:  # noqa: BLE001 - that it fails is the point
                hurried += 1
    took = sorted(one.done - one.sent for one in good.requests if one.way == "unary")
    return Verdict(
        seen=f"{len(slow.requests)} items over the bad network: {slow.bad()} without a right answer; "
        f"{len(good.requests)} over the good one beside it: {good.bad()}; single calls there "
        f"p50 {1000 * took[len(took) // 2]:.0f} ms",
        passed=not slow.bad() and not good.bad() and len(slow.requests) >= 10 and len(good.requests) >= 100,
        control=f"{hurried} of 5 calls with a deadline of 100 ms fail behind the delay",
        control_failed=hurried == 5,
        figures={"slow_items": len(slow.requests), "slow_bad": slow.bad(), "good_items": len(good.requests)},
    )


@scenario(
    "idle and broken peers",
    fault="1,000 idle connections, 200 that stop in the middle of the handshake, 200 that send random bytes",
    expected="others are answered as before; when they are gone, so are their descriptors",
)
async def idle_and_broken_peers(context: Context) -> Verdict:
    """The control: the open ones are seen by the same measure."""
    idle, broken = context.scaled(1_000, 200), context.scaled(200, 50)
    rng = random.Random(0)
    traffic = Traffic(context.reference_answers, context.texts)
    async with (
        running(context.bundle, context.folder) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client], calls=2, streams=1),
    ):
        pid = server.process.pid
        await traffic.flow_until(200)
        begun = time.monotonic()
        before, before_mb = descriptors(pid), rss_mb(pid)
        sent = [b""] * idle + [_PREFACE[:10]] * broken + [rng.randbytes(500) for _ in range(broken)]
        writers = []
        for first in sent:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            writers.append(writer)
        await asyncio.sleep(2.0)
        during, during_mb = descriptors(pid), rss_mb(pid)
        await traffic.flow_until(100)
        for writer in writers:
            writer.close()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.sleep(2.0)
        after, after_mb = descriptors(pid), rss_mb(pid)
        ended = time.monotonic()
        await traffic.flow_until(100)
    return Verdict(
        seen=f"{traffic.bad()} of {len(traffic.requests):,} items beside them not answered rightly; "
        f"{during - before:+d} descriptors and {during_mb - before_mb:+.0f} MB while they stood, {after - before:+d} "
        f"and {after_mb - before_mb:+.0f} MB after",
        passed=not traffic.bad() and traffic.enough(begun, ended) and after - before <= 5,
        control=f"{during - before} of {len(sent)} open connections are seen",
        control_failed=during - before >= idle,
        figures={
            "connections": len(sent),
            "descriptors_during": during - before,
            "descriptors_after": after - before,
            "mb_during": during_mb - before_mb,
            "mb_after": after_mb - before_mb,
        },
    )

"""Networks that are slow or reset connections, and peers that do not speak HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from polyhead_client import AsyncClient

from tests.reliability.processes import open_descriptors, rss_mb, run_server
from tests.reliability.proxy import NetworkConditions, bad_network
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import PlainClient, Traffic

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Resets of a run at least, and seconds to wait for them beyond its own.
_MIN_RESETS, _MAX_WAIT_S = 3, 30.0


@scenario(
    "connection resets",
    fault="The network resets each connection in the middle of a message",
    expected="No item of the shipped client fails",
)
async def connection_resets(context: Context) -> Verdict:
    """The control uses the stubs without the shipped client."""
    seconds = context.scaled(20, 3)
    async with run_server(context.bundle, context.work_dir) as server:
        results: list[tuple[Traffic, int]] = []
        for connect in (AsyncClient, PlainClient):
            conditions = NetworkConditions(reset_after_bytes=100_000)
            traffic = Traffic(context.reference_answers, context.texts)
            async with bad_network(server.target, conditions) as target:
                client: AsyncClient | PlainClient = connect(target)
                async with client, traffic.flowing([client]):
                    await asyncio.sleep(seconds)
                    # A slow machine takes longer to send the bytes after which connections are reset.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_MAX_WAIT_S):
                            while conditions.resets < _MIN_RESETS:
                                await asyncio.sleep(0.05)
                    # The last items are answered over an intact network.
                    conditions.reset_after_bytes = 0
            results.append((traffic, conditions.resets))
    (traffic, resets), (plain, plain_resets) = results
    return Verdict(
        observed=f"{resets} resets, {len(traffic.requests):,} items: {traffic.failures()} without a correct answer",
        passed=not traffic.failures() and resets >= _MIN_RESETS and len(traffic.requests) >= 100,
        control=f"stubs without the client: {plain.failures()} of {len(plain.requests):,} items failed in "
        f"{plain_resets} resets",
        control_failed=plain.failures() > 0,
        figures={"resets": resets, "items": len(traffic.requests), "failed_items": traffic.failures()},
    )


@scenario(
    "slow network",
    fault="200 ms of delay in each direction, then a throughput of 8 kB/s",
    expected="Answers are slow, but none is incorrect or lost; clients on a good network are not affected",
)
async def slow_network(context: Context) -> Verdict:
    """The control sends calls with a deadline that the network cannot meet."""
    seconds = context.scaled(15, 3)
    slow, good = Traffic(context.reference_answers, context.texts), Traffic(context.reference_answers, context.texts)
    conditions = NetworkConditions(delay_s=0.2)
    async with (
        run_server(context.bundle, context.work_dir) as server,
        bad_network(server.target, conditions) as target,
        AsyncClient(target) as far,
        AsyncClient(server.target) as near,
        good.flowing([near], calls=1, items=1, streams=1),
    ):
        async with slow.flowing([far], calls=1, items=1, streams=1):
            await asyncio.sleep(seconds)
            conditions.delay_s, conditions.bytes_per_s = 0.0, 8_000.0
            await asyncio.sleep(seconds)
            conditions.bytes_per_s = 0.0
        conditions.delay_s = 0.2
        expired = 0
        for text in context.texts[:5]:
            try:
                await far.analyze([text], deadline_s=0.1)
            except Exception:  # noqa: BLE001 - the control expects a failure
                expired += 1
    took = sorted(one.done - one.sent for one in good.requests if one.method == "unary")
    return Verdict(
        observed=f"{len(slow.requests):,} items over the bad network: {slow.failures()} without a correct answer; "
        f"{len(good.requests):,} items over a good network at the same time: {good.failures()}; single calls there "
        f"have a p50 of {1000 * took[len(took) // 2]:.0f} ms",
        passed=not slow.failures() and not good.failures() and len(slow.requests) >= 10 and len(good.requests) >= 100,
        control=f"{expired} of 5 calls with a deadline of 100 ms fail because of the delay",
        control_failed=expired == 5,
        figures={"slow_items": len(slow.requests), "slow_failed": slow.failures(), "good_items": len(good.requests)},
    )


@scenario(
    "idle and malformed connections",
    fault="1,000 idle connections, 200 that stop in the middle of the handshake, and 200 that send random bytes",
    expected="Other clients are answered as before; the server frees the descriptors when the connections close",
)
async def idle_and_malformed_connections(context: Context) -> Verdict:
    """The control counts the open connections by the same measure."""
    idle, malformed = context.scaled(1_000, 200), context.scaled(200, 50)
    rng = random.Random(0)
    traffic = Traffic(context.reference_answers, context.texts)
    async with (
        run_server(context.bundle, context.work_dir) as server,
        AsyncClient(server.target) as client,
        traffic.flowing([client], calls=2, streams=1),
    ):
        pid = server.process.pid
        await traffic.flow_until(200)
        started = time.monotonic()
        before, before_mb = open_descriptors(pid), rss_mb(pid)
        sent = [b""] * idle + [_PREFACE[:10]] * malformed + [rng.randbytes(500) for _ in range(malformed)]
        writers = []
        for data in sent:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            writers.append(writer)
        await asyncio.sleep(2.0)
        during, during_mb = open_descriptors(pid), rss_mb(pid)
        await traffic.flow_until(100)
        for writer in writers:
            writer.close()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.sleep(2.0)
        after, after_mb = open_descriptors(pid), rss_mb(pid)
        ended = time.monotonic()
        await traffic.flow_until(100)
    return Verdict(
        observed=f"{traffic.failures()} of {len(traffic.requests):,} items of other clients without a correct answer; "
        f"{during - before:+d} descriptors and {during_mb - before_mb:+.0f} MB while the connections were open, "
        f"{after - before:+d} descriptors and {after_mb - before_mb:+.0f} MB afterwards",
        passed=not traffic.failures() and traffic.covers(started, ended) and after - before <= 5,
        control=f"{during - before:,} of {len(sent):,} open connections are counted",
        control_failed=during - before >= idle,
        figures={
            "connections": len(sent),
            "descriptors_during": during - before,
            "descriptors_after": after - before,
            "mb_during": during_mb - before_mb,
            "mb_after": after_mb - before_mb,
        },
    )

"""Processes and memory that the server loses: its supervisor, a worker that stands still, memory that ends."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import partial

from polyhead_client import AsyncClient, PolyheadError

from bench.harness.servers import free_port

from .processes import (
    Server,
    address_space,
    children,
    stop_server,
    count_listeners,
    is_running,
    run_server_with_client,
    start_server,
    wait_until,
)
from .scenario import Context, Verdict, scenario
from .traffic import PlainClient, Traffic

# In messages of at most 4 MB.
_LARGE = ["word " * 600_000] * 8


@scenario(
    "killed supervisor",
    fault="the supervisor of two workers killed with SIGKILL under load, again and again",
    expected="its workers finish what they accepted and go; the port is free; a server that is started there serves",
)
async def killed_supervisor(context: Context) -> Verdict:
    """The control: a worker that is stopped does not go, and is seen."""
    times = context.scaled(5, 1)
    address, gone, lost = f"127.0.0.1:{free_port()}", [], 0
    orphans_seen = False
    for number in range(times):
        server = start_server(context.bundle, context.work_dir / "server.log", "--workers", "2", target=address)
        try:
            await server.wait_until_serving()
            await wait_until(partial(_both_serve, server), "the workers did not come up")
            workers = children(server.process.pid)
            traffic = Traffic(context.reference_answers, context.texts)
            async with AsyncClient(server.target) as client, traffic.flowing([client], streams=0):
                await traffic.flow_until(100)
                if number == 0:
                    os.kill(workers[0], signal.SIGSTOP)
                began = time.monotonic()
                await server.stop(signal.SIGKILL)
                if number == 0:
                    await asyncio.sleep(2.0)
                    orphans_seen = is_running(workers[0])
                    os.kill(workers[0], signal.SIGCONT)
                # Nobody is there to answer new calls; what was accepted has been answered.
                traffic.stop()
                await wait_until(partial(_all_gone, workers), "workers outlived their supervisor")
                gone.append(time.monotonic() - began)
            lost += sum(one.outcome == "incorrect" for one in traffic.requests)
        finally:
            await stop_server(server)
    async with run_server_with_client(context.bundle, context.work_dir, target=address) as (server, client):
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    return Verdict(
        observed=f"{times} kills: all workers gone after at most {max(gone[1:] or gone):.1f} s, {lost} wrong answers; of "
        f"{len(traffic.requests)} items of a new server on the port {traffic.failures()} were not answered rightly",
        passed=not lost and not traffic.failures(),
        control="a worker that was stopped meanwhile was seen to outlive it" if orphans_seen else "nothing was seen",
        control_failed=orphans_seen,
        figures={"kills": times, "gone_most_s": max(gone[1:] or gone)},
    )


@scenario(
    "not enough memory",
    fault="a worker of two that may not take more memory than it has, while large messages come",
    expected="whatever becomes of the worker and of calls with megabytes, no other item of the shipped client fails",
)
async def not_enough_memory(context: Context) -> Verdict:
    """RLIMIT_AS of a running worker, over and over, as the supervisor starts fresh ones."""
    traffic = Traffic(
        context.reference_answers, [*context.texts[:50], *("word " * (20 * n) + context.texts[n] for n in range(50))]
    )
    before: list[int] = []
    large: Counter[str] = Counter()
    async with run_server_with_client(context.bundle, context.work_dir, "--workers", "2", connections=4) as (
        server,
        client,
    ):
        await wait_until(partial(_both_serve, server), "the workers did not come up")
        async with traffic.flowing([client], calls=4, items=32, streams=2):
            await traffic.flow_until(100)
            begun = time.monotonic()
            for _ in range(context.scaled(5, 1)):
                victim = min(children(server.process.pid))
                before.append(victim)
                size = address_space(victim)
                resource.prlimit(victim, resource.RLIMIT_AS, (size, size))
                for text in _LARGE:
                    # Megabytes that it would have to take, if it is the one that gets them.
                    large[await _code(client, text)] += 1
                await wait_until(partial(_both_serve, server), "the workers did not come back")
                await traffic.flow_until(100)
            died = sum(not is_running(pid) for pid in before)
            ended = time.monotonic()
            await traffic.flow_until(100)
        tight = await _start_within(context, 300 * 2**20)
    return Verdict(
        observed=f"{len(before)} limits, {died} workers died of them; {len(traffic.requests):,} items: {traffic.failures()} "
        f"without a right answer; calls with 3 MB ended {', '.join(f'{code} {n}' for code, n in large.items())}",
        passed=not traffic.failures() and traffic.covers(begun, ended),
        control=f"a server that may take 300 MB of addresses in all does not come up: exit code {tight}",
        control_failed=tight != 0,
        figures={
            "limits": len(before),
            "died": died,
            "items": len(traffic.requests),
            "failed_items": traffic.failures(),
        },
    )


async def _code(client: AsyncClient, text: str) -> str:
    try:
        (answer,) = await client.analyze([text], deadline_s=60)
    except PolyheadError as error:
        return error.code
    return answer.error.code if answer.error else "OK"


async def _start_within(context: Context, size: int) -> int:
    """Exit code of a server that is started under a limit of its address space."""
    server = start_server(context.bundle, context.work_dir / "tight.log", wrap=["prlimit", f"--as={size}"])
    try:
        return await asyncio.to_thread(server.process.wait, 60)
    finally:
        await stop_server(server)


@scenario(
    "frozen worker",
    fault="one of two workers stands still (SIGSTOP) for 5 s under load",
    expected="late answers, none wrong, none lost",
)
async def frozen_worker(context: Context) -> Verdict:
    """The control: calls with a short deadline on connections to both workers fail."""
    traffic = Traffic(context.reference_answers, context.texts)
    async with run_server_with_client(context.bundle, context.work_dir, "--workers", "2", connections=4) as (
        server,
        client,
    ):
        await wait_until(partial(_both_serve, server), "the workers did not come up")
        plain = [PlainClient(server.target) for _ in range(8)]
        for one in plain:
            await one.analyze([("", context.texts[0])], deadline_s=10)
        async with traffic.flowing([client], calls=8):
            await traffic.flow_until(100)
            begun = time.monotonic()
            victim = children(server.process.pid)[0]
            os.kill(victim, signal.SIGSTOP)
            tries: list[Awaitable[object]] = [one.analyze([("", context.texts[0])], deadline_s=2) for one in plain]
            missed = sum(isinstance(one, PolyheadError) for one in await asyncio.gather(*tries, return_exceptions=True))
            await asyncio.sleep(3.0)
            os.kill(victim, signal.SIGCONT)
            ended = time.monotonic()
            await traffic.flow_until(100)
        for one in plain:
            await one.channel.close()
    longest = max(one.done - one.sent for one in traffic.requests)
    after = traffic.outcomes(since=ended)
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a right answer; the longest took {longest:.1f} "
        "s",
        passed=not traffic.failures() and after["correct"] >= 100 and traffic.outcomes(until=begun)["correct"] >= 100,
        control=f"{missed} of 8 single calls with a deadline of 2 s, over a connection each, failed meanwhile",
        control_failed=missed > 0,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures(), "longest_s": longest},
    )


def _both_serve(server: Server) -> bool:
    return count_listeners(server.port) == 2


def _all_gone(pids: Sequence[int]) -> bool:
    return not any(map(is_running, pids))

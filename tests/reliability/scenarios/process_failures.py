"""Process failures: a killed supervisor, a worker without memory, a frozen worker."""

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
from tests.reliability.processes import (
    Server,
    address_space,
    children,
    count_listeners,
    is_running,
    run_server_with_client,
    start_server,
    stop_server,
    wait_until,
)
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import PlainClient, Traffic

# Texts of 3 MB each; a message may have at most 4 MB.
_LARGE_TEXTS = ["word " * 600_000] * 8


@scenario(
    "killed supervisor",
    fault="The supervisor of two workers is killed with SIGKILL under load, repeatedly",
    expected="The workers finish the accepted requests and exit; the port is free, and a new server on it serves",
)
async def killed_supervisor(context: Context) -> Verdict:
    """The control stops a worker, which then outlives the supervisor and must be detected."""
    times = context.scaled(5, 1)
    address = f"127.0.0.1:{free_port()}"
    exit_s: list[float] = []
    incorrect = 0
    orphan_detected = False
    for number in range(times):
        server = start_server(context.bundle, context.work_dir / "server.log", "--workers", "2", target=address)
        try:
            await server.wait_until_serving()
            await wait_until(partial(_both_serve, server), "the workers did not start")
            workers = children(server.process.pid)
            traffic = Traffic(context.reference_answers, context.texts)
            async with AsyncClient(server.target) as client, traffic.flowing([client], streams=0):
                await traffic.flow_until(100)
                if number == 0:
                    os.kill(workers[0], signal.SIGSTOP)
                killed = time.monotonic()
                await server.stop(signal.SIGKILL)
                if number == 0:
                    await asyncio.sleep(2.0)
                    orphan_detected = is_running(workers[0])
                    os.kill(workers[0], signal.SIGCONT)
                # No process answers new calls; the accepted calls have been answered.
                traffic.stop()
                await wait_until(partial(_all_exited, workers), "workers outlived their supervisor")
                exit_s.append(time.monotonic() - killed)
            incorrect += sum(one.outcome == "incorrect" for one in traffic.requests)
        finally:
            await stop_server(server)
    async with run_server_with_client(context.bundle, context.work_dir, target=address) as (server, client):
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    return Verdict(
        observed=f"{times} kills: all workers exited within {max(exit_s[1:] or exit_s):.1f} s, {incorrect} incorrect "
        f"answers; {traffic.failures()} of {len(traffic.requests)} items of a new server on the port without a "
        "correct answer",
        passed=not incorrect and not traffic.failures(),
        control=f"a stopped worker that outlives the supervisor is {'' if orphan_detected else 'not '}detected",
        control_failed=orphan_detected,
        figures={"kills": times, "exit_max_s": max(exit_s[1:] or exit_s)},
    )


@scenario(
    "memory limit",
    fault="One of two workers cannot allocate any more memory while large messages arrive",
    expected="The worker and the large calls may fail, but no other item of the shipped client does",
)
async def memory_limit(context: Context) -> Verdict:
    """Sets RLIMIT_AS of a running worker, again after each restart by the supervisor.

    The control starts a server under a limit that is too low.
    """
    traffic = Traffic(
        context.reference_answers, [*context.texts[:50], *("word " * (20 * n) + context.texts[n] for n in range(50))]
    )
    victims: list[int] = []
    large_calls: Counter[str] = Counter()
    async with run_server_with_client(context.bundle, context.work_dir, "--workers", "2", connections=4) as (
        server,
        client,
    ):
        await wait_until(partial(_both_serve, server), "the workers did not start")
        async with traffic.flowing([client], calls=4, items=32, streams=2):
            await traffic.flow_until(100)
            started = time.monotonic()
            for _ in range(context.scaled(5, 1)):
                victim = min(children(server.process.pid))
                victims.append(victim)
                size = address_space(victim)
                resource.prlimit(victim, resource.RLIMIT_AS, (size, size))
                for text in _LARGE_TEXTS:
                    # The limited worker needs megabytes for each text that it receives.
                    large_calls[await _status(client, text)] += 1
                await wait_until(partial(_both_serve, server), "the workers did not restart")
                await traffic.flow_until(100)
            died = sum(not is_running(pid) for pid in victims)
            ended = time.monotonic()
            await traffic.flow_until(100)
        exit_code = await _start_within(context, 300 * 2**20)
    return Verdict(
        observed=f"{len(victims)} limits, {died} workers died; {len(traffic.requests):,} items: {traffic.failures()} "
        "without a correct answer; calls of 3 MB ended with "
        f"{', '.join(f'{code} {n}' for code, n in large_calls.items())}",
        passed=not traffic.failures() and traffic.covers(started, ended),
        control=f"a server that is limited to an address space of 300 MB does not start: exit code {exit_code}",
        control_failed=exit_code != 0,
        figures={
            "limits": len(victims),
            "died": died,
            "items": len(traffic.requests),
            "failed_items": traffic.failures(),
        },
    )


async def _status(client: AsyncClient, text: str) -> str:
    try:
        (answer,) = await client.analyze([text], deadline_s=60)
    except PolyheadError as error:
        return error.code
    return answer.error.code if answer.error else "OK"


async def _start_within(context: Context, size: int) -> int:
    """Returns the exit code of a server that starts with a limit on its address space in bytes."""
    server = start_server(context.bundle, context.work_dir / "limited.log", wrap=["prlimit", f"--as={size}"])
    try:
        return await asyncio.to_thread(server.process.wait, 60)
    finally:
        await stop_server(server)


@scenario(
    "frozen worker",
    fault="One of two workers is stopped with SIGSTOP for 5 s under load",
    expected="Answers are late, but none is incorrect or lost",
)
async def frozen_worker(context: Context) -> Verdict:
    """The control sends calls with a short deadline over connections to both workers."""
    traffic = Traffic(context.reference_answers, context.texts)
    async with run_server_with_client(context.bundle, context.work_dir, "--workers", "2", connections=4) as (
        server,
        client,
    ):
        await wait_until(partial(_both_serve, server), "the workers did not start")
        plain = [PlainClient(server.target) for _ in range(8)]
        for one in plain:
            await one.analyze([("", context.texts[0])], deadline_s=10)
        async with traffic.flowing([client], calls=8):
            await traffic.flow_until(100)
            started = time.monotonic()
            victim = children(server.process.pid)[0]
            os.kill(victim, signal.SIGSTOP)
            calls: list[Awaitable[object]] = [one.analyze([("", context.texts[0])], deadline_s=2) for one in plain]
            failed = sum(isinstance(one, PolyheadError) for one in await asyncio.gather(*calls, return_exceptions=True))
            await asyncio.sleep(3.0)
            os.kill(victim, signal.SIGCONT)
            ended = time.monotonic()
            await traffic.flow_until(100)
        for one in plain:
            await one.channel.close()
    longest = max(one.done - one.sent for one in traffic.requests)
    after = traffic.outcomes(since=ended)
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a correct answer; the slowest took "
        f"{longest:.1f} s",
        passed=not traffic.failures() and after["correct"] >= 100 and traffic.outcomes(until=started)["correct"] >= 100,
        control=f"{failed} of 8 single calls with a deadline of 2 s, each over its own connection, failed in that time",
        control_failed=failed > 0,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures(), "max_s": longest},
    )


def _both_serve(server: Server) -> bool:
    return count_listeners(server.port) == 2


def _all_exited(pids: Sequence[int]) -> bool:
    return not any(map(is_running, pids))

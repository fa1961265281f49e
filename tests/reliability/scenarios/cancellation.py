"""Cancelled and expired calls, bundle files that change while served, and texts larger than a batch."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from pathlib import Path

from polyhead_client import Answer, PolyheadError

from bench.harness.servers import free_port, metric
from tests.reliability.processes import run_server_with_client, start_server
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic


@scenario(
    "expired deadlines",
    fault="The server is stopped with SIGSTOP until the deadlines of all accepted calls have expired",
    expected="The server computes no text whose deadline expired while it waited in the queue",
    timed=True,
)
async def expired_deadlines(context: Context) -> Verdict:
    """Counts the computed texts in the metrics of the server. The control uses a deadline that does not expire."""
    rounds = context.scaled(10, 3)
    # Different ones: equal texts would share a computation.
    texts = [f"{number} " + "word " * 120 for number in range(64)]
    counts: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    metrics = f"127.0.0.1:{free_port()}"
    # More texts than the server computes in 0.1 s, in small batches, because a started batch is not interrupted.
    items, flags = len(texts), ("--metrics-listen", metrics, "--max-batch-tokens", "256")
    async with run_server_with_client(context.bundle, context.work_dir, *flags) as (server, client):
        await asyncio.gather(*(client.analyze(texts[8 * number : 8 * number + 8]) for number in range(4)))
        for number in range(2 * rounds):
            expires = number % 2 == 0
            before = await _computed(metrics)
            deadline_s = 2.0 if expires else 30.0
            call = asyncio.create_task(client.analyze(texts, deadline_s=deadline_s))
            await asyncio.sleep(0.1)
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2.5)
            server.process.send_signal(signal.SIGCONT)
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(1.0)
            # A refused call would not be computed either, so its status must be checked.
            code = outcome.code if isinstance(outcome, PolyheadError) else "OK"
            if code != ("DEADLINE_EXCEEDED" if expires else "OK"):
                raise SystemExit(f"the call ended unexpectedly: {outcome}")
            counts[expires].append((items, await _computed(metrics) - before))
    computed, control_computed = (sum(number for _, number in counts[kind]) for kind in (True, False))
    sent = sum(items for items, _ in counts[True])
    return Verdict(
        observed=f"{rounds} stops of 2.5 s: {computed} of {sent} texts were computed, all in the 0.1 s before the "
        "stop or in a batch that had started",
        passed=0 < computed < sent / 2,
        control=f"with a deadline that does not expire: {control_computed} of {sent}",
        control_failed=control_computed == sent,
        figures={"texts": sent, "computed": computed, "computed_without_expiry": control_computed},
    )


@scenario(
    "cancelled calls",
    fault="Calls are cancelled before they are read, in the queue, in a batch, or during the response",
    expected="The server keeps no trace of them, and other calls are answered",
)
async def cancelled_calls(context: Context) -> Verdict:
    """The control counts the running calls in the same way."""
    calls = context.scaled(2_000, 200)
    rng = random.Random(0)
    metrics = f"127.0.0.1:{free_port()}"
    traffic = Traffic(context.reference_answers, context.texts)
    cancelled = finished = 0
    async with run_server_with_client(context.bundle, context.work_dir, "--metrics-listen", metrics) as (_, client):

        def start() -> list[asyncio.Task[list[Answer]]]:
            return [asyncio.create_task(client.analyze(rng.choices(context.texts, k=4))) for _ in range(20)]

        async with traffic.flowing([client], calls=1, items=1, streams=1):
            # Every moment of a call is cancelled if the last cancellation comes when the calls would end, however fast
            # this machine is.
            started = time.monotonic()
            await asyncio.gather(*start())
            duration_s = time.monotonic() - started
            while cancelled < calls and finished < 20 * calls:
                tasks = start()
                for task in tasks:
                    await asyncio.sleep(rng.uniform(0, duration_s / 10))
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    cancelled += isinstance(outcome, BaseException)
                    finished += isinstance(outcome, list)
            await traffic.flow_until(100)
            during = await _metric(metrics, "polyhead_requests_running")
        await asyncio.sleep(1.0)
        # One more batch, so that the metrics of the queue are current.
        await client.analyze(context.texts[:1])
        left = [await _metric(metrics, name) for name in ("polyhead_requests_running", "polyhead_queued_items")]
    return Verdict(
        observed=f"{cancelled:,} calls cancelled, {finished} finished first; {left[0]} calls and {left[1]} texts "
        f"remain; {traffic.failures()} of {len(traffic.requests):,} other items without a correct answer",
        passed=left == [0, 0] and not traffic.failures() and cancelled >= calls,
        control=f"calls counted while calls are running: {during}",
        control_failed=during > 0,
        figures={"cancelled": cancelled, "finished": finished, "items": len(traffic.requests)},
    )


async def _computed(metrics: str) -> int:
    """Number of texts that the server has computed according to its metrics."""
    return await _metric(metrics, "polyhead_items_total")


async def _metric(metrics: str, name: str) -> int:
    """Value of a metric of the server."""
    return int(await asyncio.to_thread(metric, metrics, name))


@scenario(
    "overwritten bundle",
    fault="The files of the bundle are overwritten, truncated and removed while it is served",
    expected="Answers do not change; a new server refuses the damaged bundle",
)
async def overwritten_bundle(context: Context) -> Verdict:
    """The control starts a server on the damaged bundle."""
    copy = context.work_dir / "bundle"
    shutil.copytree(context.bundle, copy)
    traffic = Traffic(context.reference_answers, context.texts)
    moments: list[float] = []
    async with run_server_with_client(copy, context.work_dir) as (_, client), traffic.flowing([client]):
        await traffic.flow_until(100)
        for damage in (_overwrite, _truncate, _remove):
            moments.append(time.monotonic())
            await asyncio.to_thread(damage, copy)
            await traffic.flow_until(100)
    shutil.copytree(context.bundle, copy, dirs_exist_ok=True)
    _overwrite(copy)
    new_server = start_server(copy, context.work_dir / "new.log")
    code = await asyncio.to_thread(new_server.process.wait, 60)
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a correct answer",
        passed=not traffic.failures() and traffic.covers(*moments),
        control=f"a new server on the damaged bundle exits with code {code}",
        control_failed=code == 2,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures()},
    )


def _files(bundle: Path) -> list[Path]:
    return [path for path in bundle.rglob("*") if path.is_file()]


def _overwrite(bundle: Path) -> None:
    for path in _files(bundle):
        with path.open("r+b") as stream:
            stream.seek(path.stat().st_size // 2)
            stream.write(b"\xff" * min(10**6, path.stat().st_size // 2))


def _truncate(bundle: Path) -> None:
    for path in _files(bundle):
        os.truncate(path, path.stat().st_size // 3)


def _remove(bundle: Path) -> None:
    for path in _files(bundle):
        path.unlink()


@scenario(
    "texts larger than a batch",
    fault="Texts of 128 tokens for a server with a batch size limit of 16 tokens",
    expected="Each text forms its own batch and is answered correctly",
)
async def texts_larger_than_a_batch(context: Context) -> Verdict:
    """The control sends the texts with truncation="error", which proves that they are as long as intended."""
    texts = ["word " * 200 + text for text in context.texts[:20]] + context.texts[:20]
    traffic = Traffic(context.reference_answers, texts)
    async with run_server_with_client(context.bundle, context.work_dir, "--max-batch-tokens", "16") as (_, client):
        async with traffic.flowing([client]):
            await traffic.flow_until(context.scaled(500, 100))
        refused = await client.analyze(texts[:20], truncation="error")
    reasons = [one.error.reason for one in refused if one.error]
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a correct answer",
        passed=not traffic.failures() and len(traffic.requests) >= 100,
        control=f'with truncation="error", {reasons.count("TEXT_TOO_LONG")} of 20 texts are refused as too long',
        control_failed=reasons.count("TEXT_TOO_LONG") == 20,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures()},
    )

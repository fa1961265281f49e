"""Work that nobody waits for any more, and texts and files that are not what they were."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from pathlib import Path

from polyhead_client import PolyheadError

from bench.harness.servers import free_port, metric

from .processes import run_server_with_client, start_server
from .scenario import Context, Verdict, scenario
from .traffic import Traffic


@scenario(
    "passed deadlines",
    fault="a server that stands still until the deadline of everything that it accepted has passed",
    expected="only what was computed before it stood still was computed: nothing of the rest",
    timed=True,
)
async def passed_deadlines(context: Context) -> Verdict:
    """SIGSTOP, and what the server's own metrics say it computed. The control: without a deadline all is computed."""
    rounds = context.scaled(10, 3)
    text = "word " * 120
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    metrics = f"127.0.0.1:{free_port()}"
    # More texts than 0.1 s is enough for, in small passes, of which those that have begun go on.
    items, flags = 64, ("--metrics-listen", metrics, "--max-batch-tokens", "256")
    async with run_server_with_client(context.bundle, context.work_dir, *flags) as (server, client):
        await asyncio.gather(*(client.analyze([text] * 8) for _ in range(4)))
        for number in range(2 * rounds):
            has_deadline = number % 2 == 0
            before = await _computed(metrics)
            deadline_s = 2.0 if has_deadline else 30.0
            call = asyncio.create_task(client.analyze([text] * items, deadline_s=deadline_s))
            await asyncio.sleep(0.1)
            server.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await asyncio.sleep(2.5)
            server.process.send_signal(signal.SIGCONT)
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(1.0)
            # Refused, it would not be computed either.
            code = outcome.code if isinstance(outcome, PolyheadError) else "OK"
            if code != ("DEADLINE_EXCEEDED" if has_deadline else "OK"):
                raise SystemExit(f"the call ended otherwise than expected: {outcome}, after {stopped}")
            found[has_deadline].append((items, await _computed(metrics) - before))
    computed, all_of_them = (sum(number for _, number in found[kind]) for kind in (True, False))
    sent = sum(items for items, _ in found[True])
    return Verdict(
        observed=f"{rounds} stops of 2.5 s: {computed} of {sent} texts were computed, in the 0.1 s before the stop or in "
        "a pass that had begun",
        passed=0 < computed < sent / 2,
        control=f"without a deadline: {all_of_them} of {sent}",
        control_failed=all_of_them == sent,
        figures={"texts": sent, "computed": computed, "computed_without_deadline": all_of_them},
    )


@scenario(
    "cancels at every stage",
    fault="calls that are cancelled after 0 to 400 ms: unread, while they wait, in their pass, on the way back",
    expected="nothing of them stays in the server, and calls beside them are answered",
)
async def cancels_at_every_stage(context: Context) -> Verdict:
    """The control: calls that are running are seen by the same measure."""
    calls = context.scaled(3_000, 300)
    rng = random.Random(0)
    metrics = f"127.0.0.1:{free_port()}"
    traffic = Traffic(context.reference_answers, context.texts)
    cancelled = finished = 0
    async with run_server_with_client(context.bundle, context.work_dir, "--metrics-listen", metrics) as (_, client):
        async with traffic.flowing([client], calls=1, items=1, streams=1):
            for _ in range(calls // 20):
                tasks = [asyncio.create_task(client.analyze(rng.choices(context.texts, k=4))) for _ in range(20)]
                for task in tasks:
                    await asyncio.sleep(rng.uniform(0, 0.02))
                    task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    cancelled += isinstance(outcome, BaseException)
                    finished += isinstance(outcome, list)
            during = await _metric(metrics, "polyhead_requests_running")
        await asyncio.sleep(1.0)
        # A pass after all of them, so that what is told of the queue is of now.
        await client.analyze(context.texts[:1])
        left = [await _metric(metrics, name) for name in ("polyhead_requests_running", "polyhead_queued_items")]
    return Verdict(
        observed=f"{cancelled:,} calls cancelled, {finished} finished first; {left[0]} calls and {left[1]} texts are left; "
        f"{traffic.failures()} of {len(traffic.requests):,} items beside them without a right answer",
        passed=left == [0, 0] and not traffic.failures() and len(traffic.requests) >= 100 and cancelled > calls / 2,
        control=f"while calls run, {during} are seen",
        control_failed=during > 0,
        figures={"cancelled": cancelled, "finished": finished, "items": len(traffic.requests)},
    )


async def _computed(metrics: str) -> int:
    """Texts that the server says it has computed."""
    return await _metric(metrics, "polyhead_items_total")


async def _metric(metrics: str, name: str) -> int:
    """A number among the server's metrics."""
    return int(await asyncio.to_thread(metric, metrics, name))


@scenario(
    "bundle overwritten",
    fault="the files of the bundle overwritten, cut and removed while it is served",
    expected="answers stay what they are; a start on what is left is refused",
)
async def bundle_overwritten(context: Context) -> Verdict:
    """The control is the start: the damage is real."""
    copy = context.work_dir / "bundle"
    shutil.copytree(context.bundle, copy)
    traffic = Traffic(context.reference_answers, context.texts)
    moments: list[float] = []
    async with run_server_with_client(copy, context.work_dir) as (_, client), traffic.flowing([client]):
        await traffic.flow_until(100)
        for damage in (_overwrite, _cut, _remove):
            moments.append(time.monotonic())
            await asyncio.to_thread(damage, copy)
            await traffic.flow_until(100)
    shutil.copytree(context.bundle, copy, dirs_exist_ok=True)
    _overwrite(copy)
    again = start_server(copy, context.work_dir / "again.log")
    code = await asyncio.to_thread(again.process.wait, 60)
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a right answer",
        passed=not traffic.failures() and traffic.covers(*moments),
        control=f"a server that is started on the damaged files leaves with exit code {code}",
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


def _cut(bundle: Path) -> None:
    for path in _files(bundle):
        os.truncate(path, path.stat().st_size // 3)


def _remove(bundle: Path) -> None:
    for path in _files(bundle):
        path.unlink()


@scenario(
    "texts larger than a pass",
    fault="texts of 128 tokens for a server whose passes hold 16",
    expected="each goes alone and is answered rightly",
)
async def texts_larger_than_a_pass(context: Context) -> Verdict:
    """The control: a client that refuses truncation is refused, so they are as long as they should be."""
    texts = ["word " * 200 + text for text in context.texts[:20]] + context.texts[:20]
    traffic = Traffic(context.reference_answers, texts)
    async with run_server_with_client(context.bundle, context.work_dir, "--max-batch-tokens", "16") as (_, client):
        async with traffic.flowing([client]):
            await traffic.flow_until(context.scaled(500, 100))
        refused = await client.analyze(texts[:20], truncation="error")
    reasons = [one.error.reason for one in refused if one.error]
    return Verdict(
        observed=f"{len(traffic.requests):,} items: {traffic.failures()} without a right answer",
        passed=not traffic.failures() and len(traffic.requests) >= 100,
        control=f"{reasons.count('TEXT_TOO_LONG')} of 20 are refused as too long by a client that asks for that",
        control_failed=reasons.count("TEXT_TOO_LONG") == 20,
        figures={"items": len(traffic.requests), "failed_items": traffic.failures()},
    )

"""Mixed load for minutes or hours; memory, file descriptors, threads and tasks of the event loop must not grow."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_client import AsyncClient, PolyheadError

from bench.harness.servers import free_port, metric
from tests.reliability.memory_growth import MAX_MB, MAX_MB_PER_HOUR, PERIODS, growth, leak_by_period
from tests.reliability.processes import open_descriptors, rss_mb, run_server_with_client
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import MIN_ITEMS, Traffic

from .resource_abuse import cancel_streams
from .restarts_and_reloads import replace_link

_SAMPLE_INTERVAL_S = 0.25
# A reload takes one or two seconds, and longer if the machine is busy.
_MIN_PERIOD_S = 10.0
# After this time a server has allocated its steady memory: the first reload and the first batch of each size are over.
_WARM_UP_S = 60.0
_LONG_TEXTS = 40
# The server counts its tasks once a second.
_SAMPLES_PER_SCRAPE = 4
# Tasks follow the calls that run at the moment of a sample: up to a hundred.
_MAX_TASKS = 100


@dataclass(frozen=True)
class _Minimum:
    """Minimum resource usage of a server in a span of time.

    Attributes:
        second: Time of the minimum memory by ``time.monotonic()``.
        mb: Resident memory in MB.
        descriptors: Open file descriptors.
        threads: Threads.
        tasks: Tasks of the event loop.
    """

    second: float
    mb: float
    descriptors: int
    threads: int
    tasks: int


@scenario(
    "soak",
    fault="Sustained mixed load: 1 to 64 texts of up to 10,000 characters, errors, short deadlines, cancellations and "
    "reloads",
    expected=f"No answer is incorrect; the minimum memory between two reloads grows by less than {MAX_MB_PER_HOUR:g} "
    "MB an hour in the second half (upper end of the 95 % interval), or, if the time is too short for a slope, by "
    f"less than {MAX_MB:g} MB from the first half to the second; descriptors, threads and tasks of the event loop do "
    "not grow",
)
async def soak(context: Context) -> Verdict:
    """The control adds a leak of twice the limit to the measured memory, which the same rule must reject."""
    seconds = context.soak_s
    periods = min(PERIODS, 2 * max(1, int(seconds / 2 / _MIN_PERIOD_S)))
    warm_up_periods = max(1, round(min(_WARM_UP_S, seconds / 4) / (seconds / periods)))
    traffic, counts, long = Traffic(context.reference_answers, context.texts), Counter[str](), _long_texts(context)
    link = context.work_dir / "served"
    replace_link(link, context.bundle)
    metrics = f"127.0.0.1:{free_port()}"
    async with (
        run_server_with_client(link, context.work_dir, "--metrics-listen", metrics) as (server, client),
        traffic.flowing([client], calls=2, items=8, streams=2),
    ):
        ends = [time.monotonic() + seconds / periods * (number + 1) for number in range(warm_up_periods + periods)]
        noise = [
            asyncio.create_task(_noise(context, client, long, counts, end=ends[-1], seed=seed)) for seed in range(3)
        ]
        noise.append(asyncio.create_task(_cancels(context, server.target, ends[-1])))
        minima = []
        for end, bundle in zip(ends, itertools.cycle((context.other_bundle, context.bundle)), strict=False):
            replace_link(link, bundle)
            server.process.send_signal(signal.SIGHUP)
            minima.append(await _sample_minimum(end, server.process.pid, metrics))
        await asyncio.gather(*noise)
    minima = minima[warm_up_periods:]
    times, memory = [one.second for one in minima], [one.mb for one in minima]
    measured = growth(times, memory)
    leak = leak_by_period(periods, seconds, measured)
    leaking = growth(times, [mb + leaked for mb, leaked in zip(memory, leak, strict=True)])
    half, last = minima[periods // 2], minima[-1]
    descriptors, threads = last.descriptors - half.descriptors, last.threads - half.threads
    tasks = last.tasks - half.tasks
    return Verdict(
        observed=f"{seconds:g} s, {len(traffic.requests) + counts.total():,} items: "
        f"{traffic.failures() + counts['incorrect']} without the correct answer; the minimum memory between two "
        f"reloads grows by {measured}, to {memory[-1]:.0f} MB at the end; {descriptors:+d} descriptors, {threads:+d} "
        f"threads, {tasks:+d} tasks",
        passed=not traffic.failures()
        and not counts["incorrect"]
        and counts["correct"] >= MIN_ITEMS
        and measured.is_bounded
        and threads <= 1
        and descriptors <= 20
        and tasks <= _MAX_TASKS,
        control=f"with an added leak of {leak[1]:.1f} MB in each period between two reloads, it grows by {leaking}",
        control_failed=not leaking.is_bounded,
        figures={
            "seconds": seconds,
            "items": len(traffic.requests) + counts.total(),
            "reloads": len(ends),
            "growth": measured.by,
            "growth_error": measured.error,
            "growth_limit": measured.limit,
            "mb_at_half": half.mb,
            "mb_at_end": last.mb,
            "descriptors": descriptors,
            "threads": threads,
            "tasks": tasks,
            **{f"noise_{name}": number for name, number in counts.items()},
        },
    )


async def _sample_minimum(end: float, pid: int, metrics: str) -> _Minimum:
    """Samples the usage of a server until ``end``, at least twice; returns the minimum of each resource."""
    samples: list[tuple[float, float, int, int]] = []
    tasks: list[float] = []
    while time.monotonic() < end or len(samples) < 2:
        samples.append((rss_mb(pid), time.monotonic(), open_descriptors(pid), _threads(pid)))
        if len(samples) % _SAMPLES_PER_SCRAPE == 1:
            tasks.append(await asyncio.to_thread(metric, metrics, "polyhead_event_loop_tasks"))
        await asyncio.sleep(_SAMPLE_INTERVAL_S)
    mb, second, _, _ = min(samples)
    return _Minimum(second, mb, min(one[2] for one in samples), min(one[3] for one in samples), int(min(tasks)))


def _long_texts(context: Context) -> list[str]:
    """Texts far longer than the model reads; their answers are precomputed so as not to block the event loop."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(context.texts, k=50))[:10_000] for _ in range(_LONG_TEXTS)]
    context.reference_answers.precompute(texts)
    return texts


async def _noise(
    context: Context, client: AsyncClient, long: Sequence[str], counts: Counter[str], *, end: float, seed: int
) -> None:
    """Sends calls of all shapes and counts their outcomes, including the errors that some of them provoke."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        size = rng.choice((1, 2, 8, 64))
        texts = rng.choices(long, k=min(size, 4)) if rng.random() < 0.2 else rng.choices(context.texts, k=size)
        try:
            answers = await client.analyze(
                texts,
                truncation="error" if rng.random() < 0.2 else "truncate",
                deadline_s=rng.choice((0.02, 0.5, 30)),
            )
        except PolyheadError as error:
            counts[error.code] += len(texts)
            continue
        for text, answer in zip(texts, answers, strict=True):
            if answer.result is None:
                counts[answer.error.code if answer.error else "incorrect"] += 1
            else:
                counts[context.reference_answers.judge(text, answer.result)] += 1


async def _cancels(context: Context, target: str, end: float) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(PolyheadError):
            await cancel_streams(context, target, 20)
        await asyncio.sleep(0.5)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))

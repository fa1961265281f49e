"""Everything at once for a while: does anything grow?"""

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

from .memory_growth import MAX_MB, MAX_MB_PER_HOUR, PERIODS, growth
from .processes import open_descriptors, rss_mb, run_server_with_client
from .resource_abuse import cancel_streams
from .restarts_and_reloads import point
from .scenario import Context, Verdict, scenario
from .traffic import MIN_ITEMS, Traffic

_EVERY_S = 0.25
# A reload takes a second or two, and longer beside other work.
_LEAST_PERIOD_S = 10.0
# What a server needs anyway, it has taken by then: its first reload, the first passes of each size.
_WARM_S = 60.0
_LONG_TEXTS = 40


@dataclass(frozen=True)
class _Least:
    """The least that a server had in a span of time.

    Attributes:
        second: Of ``time.monotonic()``, when its memory was least.
    """

    second: float
    mb: float
    descriptors: int
    threads: int


@scenario(
    "soak",
    fault="mixed load for a while: 1 to 64 texts, up to 10,000 characters, errors, short deadlines, cancels, reloads",
    expected="no wrong answer; the least memory between two reloads grows by less than "
    f"{MAX_MB_PER_HOUR:g} MB an hour in the second half (upper end of the 95 % interval), or, where the time is too "
    f"short to tell, by less than {MAX_MB:g} MB from half to half; descriptors and threads stay",
)
async def soak(context: Context) -> Verdict:
    """The control: memory that leaks twice as much as is allowed does not pass the same rule."""
    seconds = context.soak_s
    periods = min(PERIODS, 2 * max(1, int(seconds / 2 / _LEAST_PERIOD_S)))
    warm = max(1, round(min(_WARM_S, seconds / 4) / (seconds / periods)))
    traffic, counts, long = Traffic(context.reference_answers, context.texts), Counter[str](), _long_texts(context)
    link = context.work_dir / "served"
    point(link, context.bundle)
    async with (
        run_server_with_client(link, context.work_dir) as (server, client),
        traffic.flowing([client], calls=2, items=8, streams=2),
    ):
        ends = [time.monotonic() + seconds / periods * (number + 1) for number in range(warm + periods)]
        noise = [
            asyncio.create_task(_noise(context, client, long, counts, end=ends[-1], seed=seed)) for seed in range(3)
        ]
        noise.append(asyncio.create_task(_cancels(context, server.target, ends[-1])))
        floors = []
        for end, bundle in zip(ends, itertools.cycle((context.other_bundle, context.bundle)), strict=False):
            point(link, bundle)
            server.process.send_signal(signal.SIGHUP)
            floors.append(await _least_until(end, server.process.pid))
        await asyncio.gather(*noise)
    floors = floors[warm:]
    times, memory = [one.second for one in floors], [one.mb for one in floors]
    grown = growth(times, memory)
    per_s = 2 * (grown.limit / 3600 if grown.error else grown.limit / (seconds / 2))
    leaking = growth(times, [mb + per_s * (second - times[0]) for second, mb in zip(times, memory, strict=True)])
    half, last = floors[periods // 2], floors[-1]
    opened, threads = last.descriptors - half.descriptors, last.threads - half.threads
    return Verdict(
        observed=f"{seconds:g} s, {len(traffic.requests) + counts.total():,} items: {traffic.failures() + counts['incorrect']} "
        f"without the right answer; the least memory between two reloads {grown}, {memory[-1]:.0f} MB at the end; "
        f"{opened:+d} descriptors, {threads:+d} threads",
        passed=not traffic.failures()
        and not counts["incorrect"]
        and counts["correct"] >= MIN_ITEMS
        and grown.is_bounded
        and threads <= 1
        and opened <= 20,
        control=f"with {per_s * 60:.1f} MB more a minute it is {leaking}",
        control_failed=not leaking.is_bounded,
        figures={
            "seconds": seconds,
            "items": len(traffic.requests) + counts.total(),
            "reloads": len(ends),
            "grown": grown.by,
            "grown_interval": grown.error,
            "grown_limit": grown.limit,
            "mb_at_half": half.mb,
            "mb_at_end": last.mb,
            "descriptors": opened,
            "threads": threads,
            **{f"noise_{name}": number for name, number in counts.items()},
        },
    )


async def _least_until(end: float, pid: int) -> _Least:
    """The least of each that a server has, seen four times a second; twice at least."""
    seen: list[tuple[float, float, int, int]] = []
    while time.monotonic() < end or len(seen) < 2:
        seen.append((rss_mb(pid), time.monotonic(), open_descriptors(pid), _threads(pid)))
        await asyncio.sleep(_EVERY_S)
    mb, second, _, _ = min(seen)
    return _Least(second, mb, min(one[2] for one in seen), min(one[3] for one in seen))


def _long_texts(context: Context) -> list[str]:
    """Texts far longer than the model reads, with known answers: computing them meanwhile would hold up this loop."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(context.texts, k=50))[:10_000] for _ in range(_LONG_TEXTS)]
    context.reference_answers.precompute(texts)
    return texts


async def _noise(
    context: Context, client: AsyncClient, long: Sequence[str], counts: Counter[str], *, end: float, seed: int
) -> None:
    """Calls of all shapes, with what each of them may end with."""
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

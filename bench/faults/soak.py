"""Everything at once for a while: does anything grow?"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from polyhead_client import AsyncClient, PolyheadError

from .case import Finding, Place, case
from .hogs import cancel_streams
from .processes import descriptors, rss_mb, served
from .restarts import point
from .traffic import Traffic

_EVERY_S = 0.5
_RELOADS = 8
# Groups of neighbouring samples: their means hang together far less than the samples do.
_GROUPS = 8
# Student's t, two-sided 95 %, 6 degrees of freedom: 8 points, two of them spent on the line.
_T = 2.447
_MOST_MB_PER_HOUR = 60.0


@case(
    "soak",
    fault="mixed load for a while: 1 to 64 texts, up to 10,000 characters, errors, short deadlines, cancels, reloads",
    expected="no wrong answer; in the second half no growth of memory that can be told from none, or less than "
    f"{_MOST_MB_PER_HOUR:g} MB an hour; descriptors and threads stay",
)
async def soak(place: Place) -> Finding:
    """The control: the same line through memory that leaks is seen to grow."""
    seconds = place.soak_s
    traffic = Traffic(place.offline, place.texts)
    samples: list[tuple[float, float, int, int]] = []
    counts: Counter[str] = Counter()
    link = place.folder / "served"
    point(link, place.bundle)
    async with served(link, place.folder) as (server, client):
        pid = server.process.pid
        end = time.monotonic() + seconds
        async with traffic.flowing([client], calls=2, items=8, streams=2):
            noise = [asyncio.create_task(_noise(place, client, counts, end, seed)) for seed in range(3)]
            noise.append(asyncio.create_task(_cancels(place, server.target, end)))
            bundles = itertools.cycle((place.other, place.bundle))
            while time.monotonic() < end:
                # As often in the first half as in the second: a reload needs room for two.
                if len(samples) % int(seconds / _RELOADS / _EVERY_S) == 1:
                    point(link, next(bundles))
                    server.process.send_signal(signal.SIGHUP)
                samples.append((time.monotonic(), rss_mb(pid), descriptors(pid), _threads(pid)))
                await asyncio.sleep(_EVERY_S)
            await asyncio.gather(*noise)
    half = samples[len(samples) // 2 :]
    times, memory = [one[0] for one in half], [one[1] for one in half]
    slope, error = _line(times, memory)
    leak_mb = place.many(1, 10)
    grown, grown_error = _line(times, [one + leak_mb * number for number, one in enumerate(memory)])
    opened, threads = (half[-1][part] - half[0][part] for part in (2, 3))
    return Finding(
        seen=f"{seconds} s, {len(traffic.requests) + counts.total():,} items: {traffic.bad() + counts['wrong']} "
        f"without the right answer; memory {slope:+.0f} +- {error:.0f} MB an hour in the second half, "
        f"{memory[-1]:.0f} MB at the end; {opened:+d} descriptors, {threads:+d} threads",
        passed=not traffic.bad()
        and not counts["wrong"]
        and (slope - error <= 0 or slope < _MOST_MB_PER_HOUR)
        and threads <= 1
        and opened <= 20,
        control=f"with {leak_mb} MB more in each sample it is {grown:+.0f} +- {grown_error:.0f} MB an hour",
        control_failed=grown - grown_error > _MOST_MB_PER_HOUR,
        figures={
            "seconds": seconds,
            "items": len(traffic.requests) + counts.total(),
            "slope_mb_per_hour": slope,
            "slope_interval": error,
            "mb_at_half": memory[0],
            "mb_at_end": memory[-1],
            "descriptors": opened,
            "threads": threads,
            **{f"noise_{name}": number for name, number in counts.items()},
        },
    )


async def _noise(place: Place, client: AsyncClient, counts: Counter[str], end: float, seed: int) -> None:
    """Calls of all shapes, with what each of them may end with."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        texts = rng.choices(place.texts, k=rng.choice((1, 2, 8, 64)))
        long = rng.random() < 0.2
        if long:
            texts = [" ".join(rng.choices(place.texts, k=50))[:10_000] for _ in texts[:4]]
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
                counts[answer.error.code if answer.error else "wrong"] += 1
            else:
                # What was made up here is not known beforehand, and computing it would hold up this loop.
                counts["long" if long else place.offline.judge(text, answer.result)] += 1


async def _cancels(place: Place, target: str, end: float) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(PolyheadError):
            await cancel_streams(place, target, 20)
        await asyncio.sleep(0.5)


def _line(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope through the means of groups of neighbours, and half its 95 % interval, an hour."""
    size = len(values) // _GROUPS
    if size < 1:
        return math.nan, math.nan
    xs = [statistics.fmean(times[begin : begin + size]) / 3600 for begin in range(0, size * _GROUPS, size)]
    ys = [statistics.fmean(values[begin : begin + size]) for begin in range(0, size * _GROUPS, size)]
    slope, intercept = statistics.linear_regression(xs, ys)
    residue = sum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    return slope, _T * math.sqrt(residue / (_GROUPS - 2) / spread)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))

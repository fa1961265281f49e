from __future__ import annotations

import asyncio

import pytest

from bench.loadgen import loops
from bench.loadgen.loops import ItemRefusedError, LoadStats, arrivals, closed_loop, open_loop


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return self.cpu_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(loops, "time", fake)
    return fake


def test_warm_up_does_not_count(clock: Clock) -> None:
    stats = LoadStats(10.0, items=2)
    stats.add(2, sent_at=clock.now_s)
    with pytest.raises(SystemExit, match="too few answers"):
        stats.report()
    for _ in range(4):
        clock.now_s += 2.0
        clock.cpu_s += 0.5
        stats.add(2, sent_at=clock.now_s - 0.1)
    report = stats.report()
    assert report["items_per_s"] == pytest.approx(0.8)
    assert report["p50_ms"] == pytest.approx(100)
    assert report["messages"] == 4
    assert report["answered"] == 10
    assert report["client_cores"] == pytest.approx(0.25)
    assert "offered_per_s" not in report


def test_closed_loop_raises_on_a_refused_item(clock: Clock) -> None:
    stats = LoadStats(10.0, items=8)
    with pytest.raises(ItemRefusedError, match="3 of 8 items"):
        stats.add(5, sent_at=clock.now_s)


def test_open_loop_counts_refused_items_and_late_answers(clock: Clock) -> None:
    stats = LoadStats(10.0, items=4)
    clock.now_s = 102.0
    stats.add_scheduled(4, scheduled_at=101.5)
    clock.now_s = 103.0
    stats.add_scheduled(1, scheduled_at=101.5)
    # Scheduled within the measured time and answered after it: its latency counts, its throughput does not.
    clock.now_s = 131.0
    stats.add_scheduled(4, scheduled_at=101.5)
    report = stats.report()
    assert report["errors"] == 3
    assert report["items_per_s"] == pytest.approx(0.5)
    assert report["offered_per_s"] == pytest.approx(1.2)
    assert report["p99_ms"] == pytest.approx(29_500)


def test_arrivals_are_reproducible_and_have_the_requested_rate(clock: Clock) -> None:
    stats = LoadStats(1000.0)
    times = list(arrivals(stats, rate=5.0, seed=1))
    assert times == list(arrivals(stats, rate=5.0, seed=1))
    assert times != list(arrivals(stats, rate=5.0, seed=2))
    assert len(times) / 1001 == pytest.approx(5.0, rel=0.1)
    assert all(clock.now_s < one < stats.ends for one in times)


async def test_closed_loop_keeps_the_messages_in_flight(clock: Clock) -> None:
    stats = LoadStats(10.0)
    running = highest = 0

    async def call() -> int:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        clock.now_s += 0.5
        await asyncio.sleep(0)
        running -= 1
        return 1

    await closed_loop(call, 3, stats)
    assert highest == 3
    assert stats.report()["items_per_s"] > 0


async def test_open_loop_counts_failed_calls_as_errors(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = LoadStats(10.0)
    calls = 0

    async def advance(due: float) -> None:
        clock.now_s = due
        # Lets the calls run that were sent before.
        await asyncio.sleep(0)

    async def call() -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise ConnectionError
        return 1

    monkeypatch.setattr(loops, "until", advance)
    await open_loop(call, 20.0, stats, seed=0)
    report = stats.report()
    assert report["offered_per_s"] == pytest.approx(20.0, rel=0.2)
    assert report["errors"] == pytest.approx(report["offered_per_s"] * 10 / 2, abs=2)

"""The rule by which the memory of a soak is told to grow."""

from __future__ import annotations

import random

import pytest

from .memory_growth import MAX_MB_PER_HOUR, PERIODS, growth, line


def floors(period_s: float, mb_per_hour: float, noise_mb: float, periods: int = PERIODS) -> tuple[list[float], ...]:
    rng = random.Random(0)
    times = [period_s * number for number in range(periods)]
    return times, [300 + mb_per_hour * second / 3600 + rng.gauss(0, noise_mb) for second in times]


@pytest.mark.parametrize(("mb_per_hour", "is_bounded"), [(0, True), (MAX_MB_PER_HOUR * 2, False)])
def test_hour_tells_a_leak_from_none(mb_per_hour: float, is_bounded: bool) -> None:
    found = growth(*floors(3600 / PERIODS, mb_per_hour, noise_mb=2))
    assert found.is_bounded == is_bounded
    assert abs(found.by - mb_per_hour) <= found.error
    assert "MB an hour in the second half" in str(found)


def test_growth_that_may_be_above_the_limit_is_not_passed() -> None:
    # Nothing grows, but nobody could tell.
    found = growth(*floors(1800 / PERIODS, 0, noise_mb=60))
    assert found.by < MAX_MB_PER_HOUR < found.by + found.error
    assert not found.is_bounded


@pytest.mark.parametrize(
    ("periods", "mb", "is_bounded"),
    [(2, 150, True), (2, 400, False), (8, 0, True), (8, 40, False), (PERIODS, 0, True), (PERIODS, 40, False)],
)
def test_short_soak_is_judged_by_its_halves(mb: float, is_bounded: bool, periods: int) -> None:
    # From the middle of one half to that of the other.
    found = growth(*floors(10, mb * 3600 / (10 * periods / 2), 1, periods))
    assert found.is_bounded == is_bounded
    assert found.by == pytest.approx(mb, abs=3)
    assert "too short" in str(found)


def test_interval_holds_the_slope_nineteen_times_of_twenty() -> None:
    rng, xs = random.Random(0), list(range(PERIODS // 2))
    held = 0
    for _ in range(2000):
        slope, error = line(xs, [3 * x + rng.gauss(0, 5) for x in xs])
        held += abs(slope - 3) <= error
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_line_wants_as_many_points_as_its_quantile_is_for() -> None:
    with pytest.raises(ValueError, match="for 16 points, not for 8"):
        line(range(8), range(8))

"""Tests of the rule that decides whether the memory of a soak grows."""

from __future__ import annotations

import random

import pytest

from .memory_growth import MAX_MB_PER_HOUR, PERIODS, fit_slope, growth, leak_by_period


def minima(period_s: float, mb_per_hour: float, noise_mb: float, periods: int = PERIODS) -> tuple[list[float], ...]:
    rng = random.Random(0)
    times = [period_s * number for number in range(periods)]
    return times, [300 + mb_per_hour * second / 3600 + rng.gauss(0, noise_mb) for second in times]


@pytest.mark.parametrize(("mb_per_hour", "is_bounded"), [(0, True), (MAX_MB_PER_HOUR * 2, False)])
def test_one_hour_distinguishes_a_leak_from_none(mb_per_hour: float, is_bounded: bool) -> None:
    result = growth(*minima(3600 / PERIODS, mb_per_hour, noise_mb=2))
    assert result.is_bounded == is_bounded
    assert abs(result.by - mb_per_hour) <= result.error
    assert "MB an hour in the second half" in str(result)


def test_growth_whose_interval_exceeds_the_limit_does_not_pass() -> None:
    # Nothing grows, but the noise hides whether anything does.
    result = growth(*minima(1800 / PERIODS, 0, noise_mb=60))
    assert result.by < MAX_MB_PER_HOUR < result.by + result.error
    assert not result.is_bounded


@pytest.mark.parametrize(
    ("periods", "mb", "is_bounded"),
    [(2, 150, True), (2, 400, False), (8, 0, True), (8, 40, False), (PERIODS, 0, True), (PERIODS, 40, False)],
)
def test_short_soak_is_judged_by_the_medians_of_its_halves(mb: float, is_bounded: bool, periods: int) -> None:
    # From the middle of one half to the middle of the other.
    result = growth(*minima(10, mb * 3600 / (10 * periods / 2), 1, periods))
    assert result.is_bounded == is_bounded
    assert result.by == pytest.approx(mb, abs=3)
    assert "too short" in str(result)


@pytest.mark.parametrize(
    ("times", "memory"),
    [
        # The first minimum at the end of its period, while memory was still high, and the second at the start of its.
        ([3.7, 4.0], [319, 263]),
        ([10.0 * number for number in range(8)], [263] * 8),
        ([3600 / PERIODS * number for number in range(PERIODS)], [263 + number % 2 for number in range(PERIODS)]),
    ],
)
def test_leak_of_twice_the_limit_is_not_bounded(times: list[float], memory: list[float]) -> None:
    measured = growth(times, memory)
    assert measured.is_bounded
    leak = leak_by_period(len(times), 3600 if measured.error else 10 * len(times), measured)
    assert not growth(times, [mb + leaked for mb, leaked in zip(memory, leak, strict=True)]).is_bounded


def test_interval_contains_the_slope_in_95_percent_of_cases() -> None:
    rng, xs = random.Random(0), list(range(PERIODS // 2))
    contained = 0
    for _ in range(2000):
        slope, error = fit_slope(xs, [3 * x + rng.gauss(0, 5) for x in xs])
        contained += abs(slope - 3) <= error
    assert contained / 2000 == pytest.approx(0.95, abs=0.015)


def test_fit_slope_rejects_a_number_of_points_without_a_quantile() -> None:
    with pytest.raises(ValueError, match="for 16 points, not for 8"):
        fit_slope(range(8), range(8))

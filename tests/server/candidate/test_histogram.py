"""Histograms of latencies."""

from __future__ import annotations

import random

import pytest
from polyhead_server.candidate.histogram import GROWTH, LogHistogram


def test_quantiles_are_at_most_one_bucket_too_high() -> None:
    values = [random.Random(7).expovariate(20) for _ in range(1)] + [number / 1000 for number in range(1, 1001)]
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    for share in (0.1, 0.5, 0.9, 0.99):
        exact = sorted(values)[int(share * len(values)) - 1]
        assert exact <= histogram.quantile(share) * 1.0001
        assert histogram.quantile(share) <= exact * GROWTH**2
    assert histogram.mean == pytest.approx(sum(values) / len(values))


def test_histograms_of_two_processes_add_up() -> None:
    one, other, both = LogHistogram(), LogHistogram(), LogHistogram()
    for number in range(1, 50):
        (one if number % 2 else other).add(number)
        both.add(number)
    one.add_counts(other.counts(), other.total)
    assert one.latency() == both.latency()


def test_empty_histogram_has_no_latency() -> None:
    assert LogHistogram().latency().texts == 0
    assert LogHistogram().quantile(0.99) == 0.0


def test_numbers_out_of_range_are_counted() -> None:
    histogram = LogHistogram()
    for value in (0.0, -1.0, 1e12):
        histogram.add(value)
    assert histogram.count == 3

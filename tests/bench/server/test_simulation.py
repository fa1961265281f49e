from __future__ import annotations

import pytest
from polyhead_server.inference.scheduler import BatchLimits

from bench.server.simulation import Load, Machine, limit

MACHINE = Machine(threads=2, start_us=2000, token_us=100)


async def share(lengths: list[int], items: int, in_flight: int, *, start_tokens: float = 20) -> float:
    load = Load(MACHINE, BatchLimits(512, 0.12, start_tokens), lengths, items, in_flight, one_stream=False)
    rate, _, _ = await load.run(30.0)
    return rate / limit(MACHINE, lengths, 512)


def test_limit_is_that_of_full_passes() -> None:
    # 16 texts of 32 tokens: 2 + 51.2 ms on each of two threads.
    assert limit(MACHINE, [32] * 160, 512) == pytest.approx(2 * 16 / 0.0532)


async def test_texts_of_one_length_reach_the_limit() -> None:
    assert await share([32] * 160, 1, 256) == pytest.approx(1.0, abs=0.02)


async def test_texts_of_all_lengths_find_fewer_neighbours_the_fewer_are_in_flight() -> None:
    lengths = list(range(3, 129))
    shares = [await share(lengths, 1, in_flight) for in_flight in (8, 64, 256)]
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[2]


async def test_choosing_what_a_pass_is_worth_is_better_than_taking_all_that_may_ride() -> None:
    lengths = list(range(3, 129))
    assert await share(lengths, 1, 64) > await share(lengths, 1, 64, start_tokens=float("inf"))

from __future__ import annotations

import pytest
from polyhead_server.inference.scheduler import BatchLimits

from bench.server.simulated_server import Machine, Simulation, upper_bound

MACHINE = Machine(threads=2, overhead_us=2000, token_us=100)


async def efficiency(lengths: list[int], items: int, in_flight: int, *, overhead_tokens: float = 20) -> float:
    """Returns the simulated throughput as a share of the upper bound."""
    limits = BatchLimits(512, 0.12, overhead_tokens)
    simulation = Simulation(MACHINE, limits, lengths, items, in_flight, one_stream=False)
    throughput = await simulation.run(30.0)
    return throughput.texts_per_s / upper_bound(MACHINE, lengths, 512)


def test_upper_bound_is_the_throughput_of_full_batches() -> None:
    # 16 texts of 32 tokens: 2 + 51.2 ms on each of two threads.
    assert upper_bound(MACHINE, [32] * 160, 512) == pytest.approx(2 * 16 / 0.0532)


async def test_texts_of_one_length_reach_the_upper_bound() -> None:
    assert await efficiency([32] * 160, 1, 256) == pytest.approx(1.0, abs=0.02)


async def test_efficiency_of_mixed_lengths_grows_with_the_texts_in_flight() -> None:
    lengths = list(range(3, 129))
    found = [await efficiency(lengths, 1, in_flight) for in_flight in (8, 64, 256)]
    assert found == sorted(found)
    assert found[0] < 0.9 < found[2]


async def test_most_efficient_batches_are_better_than_largest_batches() -> None:
    lengths = list(range(3, 129))
    assert await efficiency(lengths, 1, 64) > await efficiency(lengths, 1, 64, overhead_tokens=float("inf"))

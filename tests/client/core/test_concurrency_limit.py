from __future__ import annotations

import pytest
from polyhead_client import InvalidRequestError
from polyhead_client.core.concurrency_limit import AdaptiveLimit, FixedLimit


class Server:
    """A simulated server with a latency and a maximum throughput, whose answers advance a clock."""

    def __init__(self, latency_s: float, items_per_s: float) -> None:
        self.latency_s = latency_s
        self.items_per_s = items_per_s
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def serve(self, limit: AdaptiveLimit, rounds: int, full: bool = True) -> list[int]:
        """Answers whole rounds, 8 items at a time; returns the limit after each."""
        limits = []
        for _ in range(rounds):
            width = limit.limit
            rate = min(width / self.latency_s, self.items_per_s)
            for _ in range(-(-width // 8)):
                self.time += 8 / rate
                if full:
                    limit.on_full()
                limit.on_answers(8)
            limits.append(limit.limit)
        return limits


def test_limit_settles_near_throughput_times_latency() -> None:
    server = Server(latency_s=0.2, items_per_s=2000)  # 400 in flight keep it busy
    limit = AdaptiveLimit(server.now)
    assert 400 <= max(server.serve(limit, 15)) <= 500
    settled = server.serve(limit, 200)
    assert 320 <= min(settled) <= max(settled) <= 500


def test_limit_stays_small_if_growth_does_not_increase_throughput() -> None:
    server = Server(latency_s=0.01, items_per_s=1000)  # 10 in flight keep it busy
    limit = AdaptiveLimit(server.now)
    assert max(server.serve(limit, 200)) <= 64 + 32


def test_step_without_gain_is_taken_back_and_tried_again_after_16_rounds() -> None:
    server = Server(latency_s=0.01, items_per_s=1000)
    assert server.serve(AdaptiveLimit(server.now), 19) == [96, *[64] * 16, 96, 64]


def test_one_slow_round_before_a_step_does_not_count_as_gain() -> None:
    server = Server(latency_s=0.01, items_per_s=1000)
    limit = AdaptiveLimit(server.now)
    server.serve(limit, 17)  # of 16 rounds at 64 after the first step, one is left
    server.items_per_s = 700
    assert server.serve(limit, 1) == [96]
    server.items_per_s = 1000
    assert server.serve(limit, 1) == [64]


def test_limit_grows_again_when_the_server_becomes_faster() -> None:
    server = Server(latency_s=0.2, items_per_s=500)
    limit = AdaptiveLimit(server.now)
    before = max(server.serve(limit, 100))
    server.items_per_s = 5000
    after = max(server.serve(limit, 100))
    assert before <= 64 + 3 * 32
    assert after >= 900


def test_limit_that_is_never_reached_does_not_grow() -> None:
    server = Server(latency_s=0.2, items_per_s=5000)
    limit = AdaptiveLimit(server.now)
    assert set(server.serve(limit, 50, full=False)) == {64}


def test_limit_has_a_maximum() -> None:
    server = Server(latency_s=10, items_per_s=1e9)
    limit = AdaptiveLimit(server.now)
    assert max(server.serve(limit, 500)) == 1024


def test_overload_halves_the_limit_to_no_less_than_one_message() -> None:
    limit = AdaptiveLimit()
    limits = []
    for _ in range(4):
        limit.on_overload()
        limits.append(limit.limit)
    assert limits == [32, 32, 32, 32]


def test_fixed_limit_never_changes() -> None:
    limit = FixedLimit(7)
    limit.on_full()
    limit.on_answers(100)
    limit.on_overload()
    assert limit.limit == 7


def test_fixed_limit_below_one_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="max_in_flight"):
        FixedLimit(0)

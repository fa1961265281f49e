from __future__ import annotations

import pytest
from polyhead_client import InvalidRequestError
from polyhead_client.core.concurrency_limit import AdaptiveLimit, FixedLimit


class Server:
    """Answers with a latency, at most so many items a second; a clock that its answers move on."""

    def __init__(self, latency_s: float, items_a_second: float) -> None:
        self.latency_s = latency_s
        self.items_a_second = items_a_second
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def serve(self, window: AdaptiveLimit, rounds: int, full: bool = True) -> list[int]:
        """Answers so many windows, 8 items at a time; returns the limits on the way."""
        limits = []
        for _ in range(rounds):
            limit = window.limit
            rate = min(limit / self.latency_s, self.items_a_second)
            for _ in range(-(-limit // 8)):
                self.time += 8 / rate
                if full:
                    window.on_full()
                window.on_answers(8)
            limits.append(window.limit)
        return limits


def test_window_grows_to_what_throughput_and_latency_need_and_little_beyond() -> None:
    server = Server(latency_s=0.2, items_a_second=2000)  # 400 in flight keep it busy
    window = AdaptiveLimit(server.now)
    assert 400 <= max(server.serve(window, 15)) <= 500
    settled = server.serve(window, 200)
    assert 320 <= min(settled) <= max(settled) <= 500


def test_window_stays_small_where_more_brings_nothing() -> None:
    server = Server(latency_s=0.01, items_a_second=1000)  # 10 in flight keep it busy
    window = AdaptiveLimit(server.now)
    assert max(server.serve(window, 200)) <= 64 + 32


def test_window_grows_again_when_the_server_becomes_faster() -> None:
    server = Server(latency_s=0.2, items_a_second=500)
    window = AdaptiveLimit(server.now)
    before = max(server.serve(window, 100))
    server.items_a_second = 5000
    after = max(server.serve(window, 100))
    assert before <= 64 + 3 * 32
    assert after >= 900


def test_window_that_is_never_full_does_not_grow() -> None:
    server = Server(latency_s=0.2, items_a_second=5000)
    window = AdaptiveLimit(server.now)
    assert set(server.serve(window, 50, full=False)) == {64}


def test_window_has_an_end() -> None:
    server = Server(latency_s=10, items_a_second=1e9)
    window = AdaptiveLimit(server.now)
    assert max(server.serve(window, 500)) == 1024


def test_overload_halves_the_window_down_to_one_message() -> None:
    window = AdaptiveLimit()
    limits = []
    for _ in range(4):
        window.on_overload()
        limits.append(window.limit)
    assert limits == [32, 32, 32, 32]


def test_fixed_window_stays() -> None:
    window = FixedLimit(7)
    window.on_full()
    window.on_answers(100)
    window.on_overload()
    assert window.limit == 7


def test_window_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="max_in_flight"):
        FixedLimit(0)

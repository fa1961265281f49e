from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_server.inference import autotune

from tests.support.fake_engine import FakeEngine


class TimedEngine(FakeEngine):
    """A batch takes ``overhead_s`` plus ``token_s`` per token; a batch beyond ``max_tokens`` fails."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, overhead_s: float, token_s: float, max_tokens: int = 10**9
    ) -> None:
        super().__init__()
        self.now = 0.0
        self._overhead_s, self._token_s, self._max_tokens = overhead_s, token_s, max_tokens
        monkeypatch.setattr(time, "thread_time", lambda: self.now)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        if input_ids.size > self._max_tokens:
            raise MemoryError("no memory")
        self.now += self._overhead_s + self._token_s * input_ids.size
        return super().run(input_ids, attention_mask)


@pytest.mark.parametrize(("overhead_s", "expected"), [(0.0, 128), (0.0005, 256), (0.005, 512)])
def test_batches_are_larger_the_larger_their_fixed_cost(
    overhead_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Doubling n tokens pays while overhead / (overhead + 2n x token) is at least 2 %; Python adds 0.5 ms of overhead.
    engine = TimedEngine(monkeypatch, overhead_s, 0.0001)
    assert autotune.measure(engine, 512).batch_tokens == expected


def test_measured_texts_are_no_longer_than_the_token_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.0, 0.0001)
    autotune.measure(engine, 16)
    assert {length for _, length in engine.batch_shapes} == {16}


def test_batch_that_fails_limits_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.01, 0.0001, max_tokens=256)
    assert autotune.measure(engine, 512).batch_tokens == 256


@pytest.mark.parametrize(("overhead_s", "expected"), [(1.0, 64), (0.03, 128)])
def test_slow_engine_is_not_measured_with_ever_longer_batches(
    overhead_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TimedEngine(monkeypatch, overhead_s, 0.0001)
    assert autotune.measure(engine, 512).batch_tokens == expected
    # Four batches of one text, four of 64 tokens and perhaps four of 128.
    assert engine.now < 4 * (overhead_s + 0.0128) * 3


def test_rate_is_measured_with_batches_of_the_chosen_size(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.0005, 0.0001)
    for given in (0, 256):
        # 256 tokens take 25.6 ms plus the overhead; Python adds 0.5 ms.
        measured = autotune.measure(engine, 512, given)
        assert measured.batch_tokens == 256
        assert measured.tokens_per_s == pytest.approx(256 / 0.0266)
    engine.batch_shapes.clear()
    autotune.measure(engine, 512, 640)
    assert {count * length for count, length in engine.batch_shapes} == {32, 128, 640}


@pytest.mark.parametrize("overhead_s", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("given", [0, 1, 95, 640])
def test_overhead_is_measured_in_tokens(overhead_s: float, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, overhead_s, 0.0001)
    # Python adds 0.5 ms.
    assert autotune.measure(engine, 512, given).overhead_tokens == pytest.approx((overhead_s + 0.0005) / 0.0001)


def test_tokens_that_cost_more_in_large_batches_do_not_hide_the_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steeper(TimedEngine):
        def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
            self.now += 0.00003 * max(0, input_ids.size - 128)
            return super().run(input_ids, attention_mask)

    assert autotune.measure(Steeper(monkeypatch, 0.001, 0.0001), 512, 4096).overhead_tokens == pytest.approx(15)


def test_engine_that_fails_beyond_the_smallest_batch_serves_with_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.01, 0.0001, max_tokens=64)
    measured = autotune.measure(engine, 512)
    assert measured.batch_tokens == 64
    assert measured.overhead_tokens == pytest.approx(105)


def test_overhead_is_unbounded_where_tokens_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.001, 0.0)
    assert autotune.measure(engine, 512, 640).overhead_tokens > 1e6

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_server.inference import autotune

from tests.server.conftest import FakeEngine


class TimedEngine(FakeEngine):
    """A pass takes ``start_s``, and ``token_s`` for each token; passes beyond ``most`` tokens fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start_s: float, token_s: float, most: int = 10**9) -> None:
        super().__init__()
        self.now = 0.0
        self._start_s, self._token_s, self._most = start_s, token_s, most
        monkeypatch.setattr(time, "thread_time", lambda: self.now)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        if input_ids.size > self._most:
            raise MemoryError("no memory")
        self.now += self._start_s + self._token_s * input_ids.size
        return super().run(input_ids, attention_mask)


@pytest.mark.parametrize(("start_s", "expected"), [(0.0, 128), (0.0005, 256), (0.005, 512)])
def test_the_more_a_pass_costs_to_start_the_more_tokens_fill_it(
    start_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Doubling n tokens is worth it while start / (start + 2n x token) is at least 2 %; Python adds 0.5 ms to the start.
    engine = TimedEngine(monkeypatch, start_s, 0.0001)
    assert autotune.measure(engine, 512).batch_tokens == expected


def test_texts_to_measure_with_are_no_longer_than_the_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.0, 0.0001)
    autotune.measure(engine, 16)
    assert {length for _, length in engine.passes} == {16}


def test_pass_that_fails_bounds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.01, 0.0001, most=256)
    assert autotune.measure(engine, 512).batch_tokens == 256


@pytest.mark.parametrize(("start_s", "expected"), [(1.0, 64), (0.03, 128)])
def test_slow_engine_is_not_tried_with_ever_longer_passes(
    start_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TimedEngine(monkeypatch, start_s, 0.0001)
    assert autotune.measure(engine, 512).batch_tokens == expected
    # Of one text, of 64 tokens and perhaps of 128, four passes each.
    assert engine.now < 4 * (start_s + 0.0128) * 3


def test_rate_is_that_of_the_passes_that_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.0005, 0.0001)
    for given in (0, 256):
        # 256 tokens take 25.6 ms and the start; Python adds 0.5 ms.
        measured = autotune.measure(engine, 512, given)
        assert measured.batch_tokens == 256
        assert measured.tokens_per_s == pytest.approx(256 / 0.0266)
    engine.passes.clear()
    autotune.measure(engine, 512, 640)
    assert {count * length for count, length in engine.passes} == {32, 128, 640}


@pytest.mark.parametrize("start_s", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("given", [0, 1, 95, 640])
def test_start_of_a_pass_is_told_in_tokens(start_s: float, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, start_s, 0.0001)
    # Python adds 0.5 ms.
    assert autotune.measure(engine, 512, given).overhead_tokens == pytest.approx((start_s + 0.0005) / 0.0001)


def test_tokens_that_cost_more_in_large_passes_do_not_hide_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steeper(TimedEngine):
        def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
            self.now += 0.00003 * max(0, input_ids.size - 128)
            return super().run(input_ids, attention_mask)

    assert autotune.measure(Steeper(monkeypatch, 0.001, 0.0001), 512, 4096).overhead_tokens == pytest.approx(15)


def test_engine_that_fails_beyond_the_smallest_pass_serves_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.01, 0.0001, most=64)
    measured = autotune.measure(engine, 512)
    assert measured.batch_tokens == 64
    assert measured.overhead_tokens == pytest.approx(105)


def test_where_tokens_cost_nothing_the_start_is_all_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine(monkeypatch, 0.001, 0.0)
    assert autotune.measure(engine, 512, 640).overhead_tokens > 1e6

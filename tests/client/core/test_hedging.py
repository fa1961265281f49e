from __future__ import annotations

import pytest
from polyhead_client import InvalidRequestError
from polyhead_client.core.hedging import HedgeAfter, Hedging


def test_delay_is_the_configured_seconds() -> None:
    assert Hedging(0.25).delay_s() == 0.25
    assert Hedging(None).delay_s() is None


def test_delay_is_the_95th_percentile_of_recent_latencies() -> None:
    subject = Hedging("p95")
    for number in range(20):
        assert subject.delay_s() is None
        subject.observe(float(number))
    assert subject.delay_s() == 19.0
    for _ in range(128):
        subject.observe(0.5)
    assert subject.delay_s() == 0.5


def test_at_most_a_twentieth_of_calls_is_hedged() -> None:
    subject = Hedging(0.1)
    spent = 0
    for _ in range(1000):
        subject.delay_s()
        spent += subject.try_spend()
    assert 40 <= spent <= 51


def test_unused_budget_accumulates_to_ten_calls() -> None:
    subject = Hedging(0.1)
    for _ in range(10_000):
        subject.delay_s()
    assert sum(subject.try_spend() for _ in range(100)) == 10


@pytest.mark.parametrize("after", [0, -1.0, float("inf"), float("nan"), "p99", "0.1"])
def test_invalid_delay_is_rejected(after: HedgeAfter) -> None:
    with pytest.raises(InvalidRequestError, match="hedge_after_s"):
        Hedging(after)

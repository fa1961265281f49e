from __future__ import annotations

from polyhead_server.inference.fair_clock import FairClock
from polyhead_server.inference.types import Flow


def test_entries_of_a_waiting_flow_start_one_after_the_other() -> None:
    clock, flow = FairClock(), Flow()
    assert clock.start(flow, 10) == 0
    flow.waiting_tokens = 10
    assert clock.start(flow, 20) == 10
    flow.waiting_tokens = 30
    assert clock.start(flow, 5) == 30
    assert flow.virtual_finish == 35


def test_flow_that_comes_later_starts_now() -> None:
    clock = FairClock()
    clock.advance(60, waiting_flows=3)
    assert clock.now == 20
    flow = Flow()
    assert clock.start(flow, 10) == 20
    assert flow.virtual_finish == 30


def test_flow_without_waiting_entries_is_not_charged_for_its_last_entry() -> None:
    clock, flow = FairClock(), Flow()
    clock.start(flow, 10)
    assert clock.start(flow, 10) == 0
    flow.waiting_tokens = 20
    clock.start(flow, 30)
    flow.waiting_tokens = 0
    # Charged for 10 of the burst, but not for the last 30.
    assert clock.start(flow, 10) == 10


def test_refund_takes_the_charge_back() -> None:
    clock, flow = FairClock(), Flow()
    clock.start(flow, 10)
    clock.refund(flow, 10)
    flow.waiting_tokens = 1
    assert clock.start(flow, 10) == 0

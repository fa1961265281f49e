"""Items that an overloaded server rejects, in the state of a stream."""

from __future__ import annotations

import pytest
from polyhead_client import (
    ItemError,
)
from polyhead_client.choices import Order
from polyhead_client.core.retry import RetryBudget

from tests.support.stream_states import (
    OVERLOADED,
    Clock,
    RecordingLimit,
    answers_to,
    ids,
    new_state,
    offer_all,
    rejections_of,
)


@pytest.mark.parametrize("order", ["request", "completion"])
def test_item_rejected_for_overload_is_sent_again_after_the_requested_delay(order: Order) -> None:
    now = Clock()
    state = offer_all(new_state(order=order, now=now), "abc")
    sent = state.take(1)
    state.on_answers(rejections_of(sent[:2]) + answers_to(sent[2:]))
    assert ids(state.collect()) == ([] if order == "request" else ["2"])
    assert (state.take(1), state.wait_s()) == ([], 2.0)
    now.time = 2.0
    assert state.wait_s() == 0.0
    again = state.take(1)
    assert (ids(again), state.wait_s()) == (["0", "1"], None)
    state.on_answers(answers_to(again))
    assert ids(state.collect()) == (["0", "1", "2"] if order == "request" else ["0", "1"])


def test_rejected_items_share_a_message_after_the_longest_of_their_delays() -> None:
    now = Clock()
    state = offer_all(new_state(now=now), "ab")
    first, second = state.take(1)
    sooner = ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "too much", retry_after_s=0.5)
    state.on_answers(rejections_of([first], sooner) + rejections_of([second]))
    now.time = 1.0
    assert (state.take(1), state.wait_s()) == ([], 1.0)
    now.time = 2.0
    assert ids(state.take(1)) == ["0", "1"]


def test_rejected_items_are_sent_before_those_that_were_never_sent() -> None:
    now = Clock()
    state = offer_all(new_state(max_in_flight=3, now=now), "abcd")
    sent = state.take(1)
    state.on_answers(rejections_of(sent[:1]) + answers_to(sent[1:]))
    now.time = 2.0
    assert ids(state.take(1)) == ["0", "3"]


def test_concurrency_limit_learns_of_waiting_items_answers_and_overload() -> None:
    limit = RecordingLimit(3)
    state = offer_all(new_state(max_items=2, limit=limit), "abcd")
    sent = state.take(1)
    assert limit.events == []
    sent += state.take(1)
    assert limit.events == ["full"]
    state.on_answers(rejections_of(sent[:1]) + answers_to(sent[1:]))
    assert limit.events == ["full", "overload", 2]


def test_rejections_cost_retry_budget_and_answers_refill_it() -> None:
    budget = RetryBudget()
    full = budget.tokens
    state = offer_all(new_state(max_items=2, budget=budget), "abcd")
    state.on_answers(rejections_of(state.take(1)))
    assert budget.tokens == full - 1  # one message
    state.on_answers(answers_to(state.take(1)))
    assert full - 1 < budget.tokens < full


def test_item_rejected_max_attempts_times_keeps_its_error() -> None:
    now = Clock()
    state = offer_all(new_state(max_attempts=3, now=now), "a")
    for _ in range(3):
        state.on_answers(rejections_of(state.take(1)))
        now.time += 2
    assert [answer.error for answer in state.collect()] == [OVERLOADED]


def test_item_with_a_final_error_keeps_it() -> None:
    state = offer_all(new_state(), "ab")
    too_large = ItemError("RESOURCE_EXHAUSTED", "", "without a delay")
    first, second = state.take(1)
    state.on_answers(
        rejections_of([first], too_large) + rejections_of([second], ItemError("OUT_OF_RANGE", "", "too long"))
    )
    assert [answer.error and answer.error.message for answer in state.collect()] == ["without a delay", "too long"]


def test_rejections_are_settled_if_only_rejected_items_remain() -> None:
    now = Clock()
    state = offer_all(new_state(now=now), "abc")
    first, second, third = state.take(1)
    state.on_answers(rejections_of([first, third]) + answers_to([second]))
    now.time = 2.0
    state.take(1)
    assert state.settle_rejections()
    assert [answer.error for answer in state.collect()] == [OVERLOADED, None, OVERLOADED]
    assert state.unanswered == 0


def test_rejections_are_not_settled_if_some_item_was_never_rejected() -> None:
    state = offer_all(new_state(), "abcd")
    state.on_answers(rejections_of(state.take(1)))
    assert not state.settle_rejections()
    assert (state.unanswered, state.collect()) == (4, [])


def test_stream_that_ends_with_delayed_items_is_followed_by_another() -> None:
    now = Clock()
    state = offer_all(new_state(now=now), "a")
    state.end_input()
    state.on_answers(rejections_of(state.take(1)))
    assert not state.can_take(1)
    state.on_stream_end()
    assert not state.closed
    now.time = 2.0
    call = state.begin_call()
    state.on_answers(answers_to(state.take(call)))
    state.on_stream_end()
    assert (state.closed, state.error, ids(state.collect())) == (True, None, ["0"])

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead.v1 import item_pb2
from polyhead_client import (
    Answer,
    InvalidRequestError,
    ItemError,
    ServerError,
    UnavailableError,
)
from polyhead_client.choices import Order

from tests.support.stream_states import (
    Clock,
    answers_to,
    ids,
    new_state,
    offer_all,
    rejections_of,
)

UNSENDABLE = "\ud800"
UNAVAILABLE = UnavailableError("UNAVAILABLE", "unreachable")


def test_slow_text_does_not_block_those_after_it() -> None:
    state = new_state(max_in_flight=2, max_items=1)
    offer_all(state, "a")
    (slow,) = state.take(1)
    answered = 0
    while state.can_offer():
        state.offer("b")
        state.on_answers(answers_to(state.take(1)))
        answered += 1
    assert (answered, state.collect()) == (4 * (2 + 1), [])
    state.on_answers(answers_to([slow]))
    assert len(state.collect()) == answered + 1
    assert state.can_offer()


@pytest.mark.parametrize("item_id", ["0", "7", "", "nonsense"])
def test_unexpected_answer_is_a_server_error(item_id: str) -> None:
    state = offer_all(new_state(), "a")
    state.on_answers(answers_to(state.take(1)))
    with pytest.raises(ServerError, match=f"item '{item_id}'"):
        state.on_answers([Answer(item_id)])


def test_rejection_of_a_whole_message_raises_its_error() -> None:
    state = offer_all(new_state(), "ab")
    state.take(1)
    with pytest.raises(InvalidRequestError, match="at most 1") as caught:
        state.on_answers([Answer("", error=ItemError("INVALID_ARGUMENT", "TOO_MANY_ITEMS", "at most 1"))])
    assert caught.value.reason == "TOO_MANY_ITEMS"


def test_broken_call_takes_no_more_items() -> None:
    state = offer_all(new_state(), "abcde")
    state.on_stream_error(UNAVAILABLE)
    assert (state.can_take(1), state.take(1)) == (True, [])
    state.begin_call()
    assert (state.can_take(1), state.take(1)) == (True, [])


def test_next_call_starts_when_it_has_work_to_do() -> None:
    state = new_state()
    state.on_stream_error(UNAVAILABLE)
    assert not state.can_start_call()
    state.offer("a")
    assert state.can_start_call()
    state.on_answers(answers_to(state.take(state.begin_call())))
    assert not state.can_start_call()
    state.end_input()
    assert (state.can_start_call(), state.closed) == (True, False)
    state.begin_call()
    assert (state.closed, state.error) == (True, None)


def test_empty_input_makes_one_call() -> None:
    state = new_state()
    state.end_input()
    state.on_stream_error(UNAVAILABLE)
    call = state.begin_call()
    assert (state.closed, state.can_take(call), state.take(call)) == (False, True, [])
    state.on_stream_end()
    assert (state.closed, state.error) == (True, None)


def test_item_that_breaks_every_call_ends_the_call_although_others_are_answered() -> None:
    state = new_state(max_in_flight=2)
    state.offer("poison")
    errors = 0
    while state.error is None:
        state.offer("good")
        sent = state.take(state.begin_call())
        state.on_answers(answers_to(sent[1:]))
        state.on_stream_error(UNAVAILABLE)
        errors += 1
    assert errors == 5


def test_error_after_close_is_ignored() -> None:
    state = offer_all(new_state(), "a")
    state.close()
    assert (state.on_stream_error(UNAVAILABLE), state.error) == (None, None)


def test_first_error_is_kept() -> None:
    state = new_state()
    state.fail(ValueError("first"))
    state.fail(ValueError("second"))
    assert str(state.error) == "first"
    assert (state.can_offer(), state.can_take(1), state.can_collect()) == (True, True, True)
    assert state.take(1) == []


@given(
    st.lists(st.booleans()),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["request", "completion"]),
    st.integers(),
)
def test_every_text_is_answered_once_within_the_limits_whatever_fails(
    sendable: list[bool], max_in_flight: int, max_items: int, order: Order, seed: int
) -> None:
    """Takes allowed steps in random order until every text is answered."""
    now = Clock()
    state = new_state(max_in_flight, max_items, order=order, max_attempts=10**9, now=now)
    choose = random.Random(seed)
    texts = ["good" if good else UNSENDABLE for good in sendable]
    sent: list[item_pb2.Item] = []
    collected: list[Answer] = []
    call, held = 1, 0
    while len(collected) < len(texts):
        steps = ["offer"] * (state.can_offer() and held + len(collected) < len(texts))
        steps += ["take"] * state.can_take(call) + ["answer", "answer", "reject"] * bool(sent)
        steps += ["collect"] * state.can_collect() + ["tick"] * (state.wait_s() is not None)
        steps += ["break"] * bool(steps)
        match choose.choice(steps):  # an empty list here is a deadlock
            case "offer":
                state.offer(texts[held + len(collected)])
                held += 1
            case "take":
                sent += state.take(call)
            case "answer":
                state.on_answers(answers_to([sent.pop(choose.randrange(len(sent)))]))
            case "reject":
                state.on_answers(rejections_of([sent.pop(0)]))
            case "tick":
                now.time += 1
            case "break":
                assert state.on_stream_error(UNAVAILABLE) is not None
                sent, call = [], state.begin_call()
            case "collect":
                fresh = state.collect()
                held -= len(fresh)
                collected += fresh
        assert state.in_flight == len(sent) <= max_in_flight
        assert held <= (max_in_flight + max_items) * (5 if order == "request" else 1)
    assert sorted(ids(collected), key=int) == [str(number) for number in range(len(texts))]
    assert order == "completion" or ids(collected) == [str(number) for number in range(len(texts))]
    assert {answer.item_id: answer.error is None for answer in collected} == {
        str(number): good for number, good in enumerate(sendable)
    }

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead.v1 import item_pb2
from polyhead_client import (
    Answer,
    DeadlineExceededError,
    InvalidRequestError,
    ItemError,
    ServerError,
    UnavailableError,
)
from polyhead_client.conversion import Order
from polyhead_client.core.concurrency_limit import FixedLimit
from polyhead_client.core.retry import Deadline, RetryPolicy, RetryBudget
from polyhead_client.core.stream_state import StreamState

BAD = "\ud800"
AWAY = UnavailableError("UNAVAILABLE", "gone")
BUSY = ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "too much", retry_after_s=2.0)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def flow(
    max_in_flight: int = 4,
    max_items: int = 3,
    max_bytes: int = 1000,
    *,
    order: Order = "request",
    max_attempts: int = 5,
    now: Clock | None = None,
) -> StreamState:
    """A flow, in its first call, whose retries wait exactly as long as told."""
    clock = now or Clock()
    retries = RetryPolicy(max_attempts, RetryBudget(), Deadline(None, clock), uniform=lambda low, _: low)
    window = FixedLimit(max_in_flight)
    subject = StreamState(order, window, retries, max_items=max_items, max_bytes=max_bytes, now=clock)
    subject.begin_call()
    return subject


def answers_to(items: list[item_pb2.Item]) -> list[Answer]:
    return [Answer(item.item_id) for item in items]


def refusals_of(items: list[item_pb2.Item], error: ItemError = BUSY) -> list[Answer]:
    return [Answer(item.item_id, error=error) for item in items]


def ids(answers: list[Answer] | list[item_pb2.Item]) -> list[str]:
    return [answer.item_id for answer in answers]


def offered(subject: StreamState, texts: str) -> StreamState:
    for text in texts:
        subject.offer(text)
    return subject


def test_message_takes_what_waits_up_to_its_items() -> None:
    subject = flow()
    for text in "abcde":
        subject.offer(text)
    assert [ids(subject.take(1)), ids(subject.take(1)), ids(subject.take(1))] == [["0", "1", "2"], ["3"], []]


def test_message_takes_what_waits_up_to_its_bytes_and_a_larger_item_alone() -> None:
    subject = flow()
    for text in ("x" * 400, "x" * 400, "x" * 400, "x" * 5000):
        subject.offer(text)
    assert [ids(subject.take(1)), ids(subject.take(1)), ids(subject.take(1))] == [["0", "1"], ["2"], ["3"]]


def test_answers_make_room_for_as_many_items() -> None:
    subject = flow(max_in_flight=2)
    for text in "abc":
        subject.offer(text)
    sent = subject.take(1)
    assert (len(sent), subject.in_flight, subject.can_take(1)) == (2, 2, False)
    subject.on_answers(answers_to(sent[:1]))
    assert ids(subject.take(1)) == ["2"]


def test_input_is_held_back_until_answers_are_collected() -> None:
    subject = flow(max_in_flight=2, max_items=1)
    for text in "abc":
        assert subject.can_offer()
        subject.offer(text)
    assert not subject.can_offer()
    subject.on_answers(answers_to(subject.take(1)))
    assert not subject.can_offer()
    subject.collect()
    assert subject.can_offer()


def test_text_that_takes_long_does_not_stop_those_after_it() -> None:
    subject = flow(max_in_flight=2, max_items=1)
    offered(subject, "a")
    (slow,) = subject.take(1)
    answered = 0
    while subject.can_offer():
        subject.offer("b")
        subject.on_answers(answers_to(subject.take(1)))
        answered += 1
    assert (answered, subject.collect()) == (4 * (2 + 1), [])
    subject.on_answers(answers_to([slow]))
    assert len(subject.collect()) == answered + 1
    assert subject.can_offer()


@pytest.mark.parametrize("stray", ["0", "7", "", "nonsense"])
def test_answer_to_no_item_that_waits_is_the_servers_fault(stray: str) -> None:
    subject = offered(flow(), "a")
    subject.on_answers(answers_to(subject.take(1)))
    with pytest.raises(ServerError, match=f"item '{stray}'"):
        subject.on_answers([Answer(stray)])


def test_refusal_of_a_whole_message_ends_the_call_with_its_error() -> None:
    subject = offered(flow(), "ab")
    subject.take(1)
    with pytest.raises(InvalidRequestError, match="at most 1") as caught:
        subject.on_answers([Answer("", error=ItemError("INVALID_ARGUMENT", "TOO_MANY_ITEMS", "at most 1"))])
    assert caught.value.reason == "TOO_MANY_ITEMS"


def test_ids_of_the_caller_stay_here_and_need_not_be_unique_nor_short() -> None:
    subject = flow(order="completion")
    for item_id in ("same", "same", "x" * 1000):
        subject.offer((item_id, "text"))
    sent = subject.take(1)
    assert ids(sent) == ["0", "1", "2"]
    subject.on_answers(answers_to(sent[::-1]))
    assert ids(subject.collect()) == ["x" * 1000, "same", "same"]


def test_broken_call_sends_again_exactly_what_was_not_answered() -> None:
    subject = offered(flow(), "abcde")
    sent = subject.take(1)
    subject.on_answers(answers_to(sent[:1]))
    assert subject.on_stream_error(AWAY) == pytest.approx(0.05)
    call = subject.begin_call()
    again = subject.take(call)
    assert ids(again) == ["1", "2", "3"]
    subject.on_answers(answers_to(again))
    subject.on_answers(answers_to(subject.take(call)))
    assert ids(subject.collect()) == ["0", "1", "2", "3", "4"]


def test_broken_call_takes_nothing_more() -> None:
    subject = offered(flow(), "abcde")
    subject.on_stream_error(AWAY)
    assert (subject.can_take(1), subject.take(1)) == (True, [])
    subject.begin_call()
    assert (subject.can_take(1), subject.take(1)) == (True, [])


def test_next_call_begins_when_there_is_something_to_do() -> None:
    subject = flow()
    subject.on_stream_error(AWAY)
    assert not subject.can_start_call()
    subject.offer("a")
    assert subject.can_start_call()
    subject.on_answers(answers_to(subject.take(subject.begin_call())))
    assert not subject.can_start_call()
    subject.end_input()
    assert (subject.can_start_call(), subject.closed) == (True, False)
    subject.begin_call()
    assert (subject.closed, subject.error) == (True, None)


def test_input_without_a_text_gets_a_call() -> None:
    subject = flow()
    subject.end_input()
    subject.on_stream_error(AWAY)
    call = subject.begin_call()
    assert (subject.closed, subject.can_take(call), subject.take(call)) == (False, True, [])
    subject.on_stream_end()
    assert (subject.closed, subject.error) == (True, None)


def test_calls_that_break_without_an_answer_are_bounded_and_wait_longer_each_time() -> None:
    subject = offered(flow(), "a")
    delays = [subject.on_stream_error(AWAY) for _ in range(5)]
    assert delays == [pytest.approx(0.05), pytest.approx(0.15), pytest.approx(0.45), 1.0, None]
    assert (subject.error, subject.closed) == (AWAY, True)


def test_answer_in_between_begins_the_count_again() -> None:
    subject = flow()
    for text in "abcdefgh":
        subject.offer(text)
        subject.on_answers(answers_to(subject.take(subject.begin_call())))
        assert subject.on_stream_error(AWAY) == pytest.approx(0.05)


def test_item_that_is_lost_every_time_ends_the_call_although_others_are_answered() -> None:
    subject = flow(max_in_flight=2)
    subject.offer("deadly")
    losses = 0
    while subject.error is None:
        subject.offer("good")
        sent = subject.take(subject.begin_call())
        subject.on_answers(answers_to(sent[1:]))
        subject.on_stream_error(AWAY)
        losses += 1
    assert losses == 5


def test_failure_that_another_try_cannot_mend_stands() -> None:
    subject = offered(flow(), "a")
    error = DeadlineExceededError("DEADLINE_EXCEEDED", "too late")
    assert subject.on_stream_error(error) is None
    assert subject.error is error


def test_call_that_ends_after_it_was_closed_is_no_loss() -> None:
    subject = offered(flow(), "a")
    subject.close()
    assert (subject.on_stream_error(AWAY), subject.error) == (None, None)


@pytest.mark.parametrize("order", ["request", "completion"])
def test_item_that_the_server_is_too_busy_for_is_sent_again_when_told(order: Order) -> None:
    now = Clock()
    subject = offered(flow(order=order, now=now), "abc")
    sent = subject.take(1)
    subject.on_answers(refusals_of(sent[:2]) + answers_to(sent[2:]))
    assert ids(subject.collect()) == ([] if order == "request" else ["2"])
    assert (subject.take(1), subject.wait_s()) == ([], 2.0)
    now.time = 2.0
    assert subject.wait_s() == 0.0
    again = subject.take(1)
    assert (ids(again), subject.wait_s()) == (["0", "1"], None)
    subject.on_answers(answers_to(again))
    assert ids(subject.collect()) == (["0", "1", "2"] if order == "request" else ["0", "1"])


def test_item_that_is_refused_too_often_keeps_its_error() -> None:
    now = Clock()
    subject = offered(flow(max_attempts=3, now=now), "a")
    for _ in range(3):
        subject.on_answers(refusals_of(subject.take(1)))
        now.time += 2
    assert [answer.error for answer in subject.collect()] == [BUSY]


def test_item_that_is_refused_for_good_keeps_its_error() -> None:
    subject = offered(flow(), "ab")
    too_large = ItemError("RESOURCE_EXHAUSTED", "", "no word of when")
    first, second = subject.take(1)
    subject.on_answers(refusals_of([first], too_large) + refusals_of([second], ItemError("OUT_OF_RANGE", "", "too long")))
    assert [answer.error and answer.error.message for answer in subject.collect()] == ["no word of when", "too long"]


def test_refusals_stand_when_nothing_else_is_left() -> None:
    now = Clock()
    subject = offered(flow(now=now), "abc")
    first, second, third = subject.take(1)
    subject.on_answers(refusals_of([first, third]) + answers_to([second]))
    now.time = 2.0
    subject.take(1)
    assert subject.settle_rejections()
    assert [answer.error for answer in subject.collect()] == [BUSY, None, BUSY]
    assert subject.unanswered == 0


def test_refusals_do_not_stand_for_items_that_have_none() -> None:
    subject = offered(flow(), "abcd")
    subject.on_answers(refusals_of(subject.take(1)))
    assert not subject.settle_rejections()
    assert (subject.unanswered, subject.collect()) == (4, [])


def test_call_that_ends_while_items_wait_to_be_sent_again_is_followed_by_another() -> None:
    now = Clock()
    subject = offered(flow(now=now), "a")
    subject.end_input()
    subject.on_answers(refusals_of(subject.take(1)))
    assert not subject.can_take(1)
    subject.on_stream_end()
    assert not subject.closed
    now.time = 2.0
    call = subject.begin_call()
    subject.on_answers(answers_to(subject.take(call)))
    subject.on_stream_end()
    assert (subject.closed, subject.error, ids(subject.collect())) == (True, None, ["0"])


def test_end_with_items_unanswered_is_the_servers_fault() -> None:
    subject = flow()
    subject.offer("a")
    subject.end_input()
    subject.take(1)
    subject.on_stream_end()
    assert isinstance(subject.error, ServerError)


def test_end_with_all_items_answered_is_no_error() -> None:
    subject = flow()
    subject.offer("a")
    subject.end_input()
    subject.on_answers(answers_to(subject.take(1)))
    subject.on_stream_end()
    assert (subject.error, subject.closed, ids(subject.collect())) == (None, True, ["0"])


def test_first_failure_is_the_one_that_is_told() -> None:
    subject = flow()
    subject.fail(ValueError("first"))
    subject.fail(ValueError("second"))
    assert str(subject.error) == "first"
    assert (subject.can_offer(), subject.can_take(1), subject.can_collect()) == (True, True, True)
    assert subject.take(1) == []


@given(
    st.lists(st.booleans()),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["request", "completion"]),
    st.integers(),
)
def test_every_text_is_answered_once_within_the_bounds_whatever_breaks(
    sendable: list[bool], max_in_flight: int, max_items: int, order: Order, seed: int
) -> None:
    """Does what may be done in a random order until nothing may be done any more."""
    now = Clock()
    subject = flow(max_in_flight, max_items, order=order, max_attempts=10**9, now=now)
    choose = random.Random(seed)
    texts = ["good" if good else BAD for good in sendable]
    sent: list[item_pb2.Item] = []
    collected: list[Answer] = []
    call, held = 1, 0
    while len(collected) < len(texts):
        steps = ["offer"] * (subject.can_offer() and held + len(collected) < len(texts))
        steps += ["take"] * subject.can_take(call) + ["answer", "answer", "refuse"] * bool(sent)
        steps += ["collect"] * subject.can_collect() + ["tick"] * (subject.wait_s() is not None)
        steps += ["break"] * bool(steps)
        match choose.choice(steps):  # an empty list here is a deadlock
            case "offer":
                subject.offer(texts[held + len(collected)])
                held += 1
            case "take":
                sent += subject.take(call)
            case "answer":
                subject.on_answers(answers_to([sent.pop(choose.randrange(len(sent)))]))
            case "refuse":
                subject.on_answers(refusals_of([sent.pop(0)]))
            case "tick":
                now.time += 1
            case "break":
                assert subject.on_stream_error(AWAY) is not None
                sent, call = [], subject.begin_call()
            case "collect":
                fresh = subject.collect()
                held -= len(fresh)
                collected += fresh
        assert subject.in_flight == len(sent) <= max_in_flight
        assert held <= (max_in_flight + max_items) * (5 if order == "request" else 1)
    assert sorted(ids(collected), key=int) == [str(number) for number in range(len(texts))]
    assert order == "completion" or ids(collected) == [str(number) for number in range(len(texts))]
    assert {answer.item_id: answer.error is None for answer in collected} == {
        str(number): good for number, good in enumerate(sendable)
    }

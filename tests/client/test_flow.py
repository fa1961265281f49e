from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead.v1 import item_pb2
from polyhead_client import Answer, InvalidRequestError, ServerError
from polyhead_client.flow import Flow

BAD = "\ud800"


def flow(max_in_flight: int = 4, max_items: int = 3, max_bytes: int = 1000) -> Flow:
    return Flow("request", max_in_flight, max_items, max_bytes)


def answers_to(items: list[item_pb2.Item]) -> list[Answer]:
    return [Answer(item.item_id) for item in items]


def ids(answers: list[Answer] | list[item_pb2.Item]) -> list[str]:
    return [answer.item_id for answer in answers]


def test_message_takes_what_waits_up_to_its_items() -> None:
    subject = flow()
    for text in "abcde":
        subject.offer(text)
    assert [ids(subject.take()), ids(subject.take()), ids(subject.take())] == [["0", "1", "2"], ["3"], []]


def test_message_takes_what_waits_up_to_its_bytes_and_a_larger_item_alone() -> None:
    subject = flow()
    for text in ("x" * 400, "x" * 400, "x" * 400, "x" * 5000):
        subject.offer(text)
    assert [ids(subject.take()), ids(subject.take()), ids(subject.take())] == [["0", "1"], ["2"], ["3"]]


def test_answers_make_room_for_as_many_items() -> None:
    subject = flow(max_in_flight=2)
    for text in "abc":
        subject.offer(text)
    sent = subject.take()
    assert (len(sent), subject.in_flight, subject.may_take()) == (2, 2, False)
    subject.accept(answers_to(sent[:1]))
    assert ids(subject.take()) == ["2"]


def test_input_is_held_back_until_answers_are_collected() -> None:
    subject = flow(max_in_flight=2, max_items=1)
    for text in "abc":
        assert subject.may_offer()
        subject.offer(text)
    assert not subject.may_offer()
    subject.accept(answers_to(subject.take()))
    assert not subject.may_offer()
    subject.collect()
    assert subject.may_offer()


def test_more_answers_than_items_are_the_servers_fault() -> None:
    subject = flow()
    subject.offer("a")
    sent = subject.take()
    with pytest.raises(ServerError, match="2 answers to 1 items"):
        subject.accept(answers_to(sent * 2))


def test_end_with_items_unanswered_is_the_servers_fault() -> None:
    subject = flow()
    subject.offer("a")
    subject.end_input()
    subject.take()
    subject.end_answers()
    assert isinstance(subject.error, ServerError)


def test_end_with_all_items_answered_is_no_error() -> None:
    subject = flow()
    subject.offer("a")
    subject.end_input()
    subject.accept(answers_to(subject.take()))
    subject.end_answers()
    assert (subject.error, subject.closed, ids(subject.collect())) == (None, True, ["0"])


def test_first_failure_is_the_one_that_is_told() -> None:
    subject = flow()
    subject.fail(ValueError("first"))
    subject.fail(ValueError("second"))
    assert str(subject.error) == "first"
    assert (subject.may_offer(), subject.may_take(), subject.may_collect()) == (True, True, True)
    assert subject.take() == []


def test_window_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="max_in_flight"):
        flow(max_in_flight=0)


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 4), st.integers())
def test_every_text_is_answered_once_in_order_within_the_bounds(
    sendable: list[bool], max_in_flight: int, max_items: int, seed: int
) -> None:
    """Does what may be done in a random order until nothing may be done any more."""
    subject = Flow("request", max_in_flight, max_items, max_bytes=1000)
    choose = random.Random(seed)
    texts = ["good" if good else BAD for good in sendable]
    sent: list[item_pb2.Item] = []
    collected: list[Answer] = []
    held = 0
    while len(collected) < len(texts):
        steps = ["offer"] * (subject.may_offer() and held + len(collected) < len(texts))
        steps += ["take"] * subject.may_take() + ["answer"] * bool(sent) + ["collect"] * subject.may_collect()
        match choose.choice(steps):  # an empty list here is a deadlock
            case "offer":
                subject.offer(texts[held + len(collected)])
                held += 1
            case "take":
                sent += subject.take()
            case "answer":
                subject.accept(answers_to([sent.pop(0)]))
            case "collect":
                fresh = subject.collect()
                held -= len(fresh)
                collected += fresh
        assert subject.in_flight == len(sent) <= max_in_flight
        assert held <= max_in_flight + max_items
    assert ids(collected) == [str(number) for number in range(len(texts))]
    assert [answer.error is None for answer in collected] == sendable

"""What both clients make of a server that takes less in a message than they send by themselves."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
from polyhead_client import Answer, InvalidRequestError, ItemError, ResourceExhaustedError
from polyhead_client.core.message_limits import MessageLimits

from tests.client.conftest import Face, served
from tests.support.fake_server import BUSY, FakeServicer

from .test_stream_state import answers_to, flow, ids, offered, refusals_of

TOO_MANY = InvalidRequestError("INVALID_ARGUMENT", "at most 2", "TOO_MANY_ITEMS")
TOO_LARGE = ResourceExhaustedError("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (2000 vs. 1000)")


@pytest.fixture
def narrow() -> Iterator[FakeServicer]:
    """A server whose messages have at most 100 kB."""
    with served(max_message_bytes=100_000) as servicer:
        yield servicer


def label(answer: Any) -> str:
    return str(answer.unwrap().classification.best.label)


def labels(answers: Any) -> list[str]:
    """The texts that the server saw."""
    return [label(answer) for answer in answers]


def test_batch_for_a_server_that_takes_few_items_is_answered(client: Face, servicer: FakeServicer) -> None:
    servicer.max_items = 8
    texts = [str(number) for number in range(100)]
    assert labels(client.analyze(texts)) == texts


def test_refused_message_is_learned_from_once_a_client(client: Face, servicer: FakeServicer) -> None:
    servicer.max_items = 8
    client.analyze(map(str, range(100)))
    servicer.requests.clear()
    assert labels(client.analyze(["a"] * 20)) == ["a"] * 20
    assert labels(client.stream(["b"] * 20)) == ["b"] * 20
    assert max(len(request.items) for request in servicer.requests) <= 8


@pytest.mark.parametrize("order", ["request", "completion"])
def test_stream_for_a_server_that_takes_few_items_answers_each_once(
    client: Face, servicer: FakeServicer, order: str
) -> None:
    servicer.max_items = 3
    texts = [BUSY + str(number) if number % 7 == 0 else str(number) for number in range(300)]
    answers = list(client.stream(iter(texts), order=order))
    assert {int(answer.item_id): label(answer) for answer in answers} == dict(enumerate(texts))
    assert len(answers) == 300
    assert order == "completion" or labels(answers) == texts


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_texts_that_are_too_large_together_are_sent_apart(connect: Any, narrow: FakeServicer, method: str) -> None:
    texts = ["x" * 60_000, "y" * 60_000, "z" * 20_000, *map(str, range(50))]
    assert labels(getattr(connect(narrow.target), method)(texts)) == texts


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_text_that_is_too_large_alone_is_answered_with_that(connect: Any, narrow: FakeServicer, method: str) -> None:
    large = ("large", "x" * 120_000)
    answers = list(getattr(connect(narrow.target, max_attempts=1), method)(["first", large, "last"] * 8))
    refused = [answer for answer in answers if answer.error]
    assert [answer.item_id for answer in refused] == ["large"] * 8
    assert {answer.error.reason for answer in refused} == {"ITEM_TOO_LARGE"}
    assert labels(answer for answer in answers if answer.result) == ["first", "last"] * 8


def test_text_that_is_too_large_alone_is_answered_without_waiting_for_more(connect: Any, narrow: FakeServicer) -> None:
    texts: queue.SimpleQueue[str] = queue.SimpleQueue()
    texts.put("x" * 120_000)
    answers = connect(narrow.target).stream(iter(texts.get, "stop"))
    assert next(answers).error.reason == "ITEM_TOO_LARGE"
    texts.put("next")
    assert labels([next(answers)]) == ["next"]
    texts.put("stop")
    assert list(answers) == []


def test_answers_may_be_larger_than_any_message_that_is_sent(client: Face, servicer: FakeServicer) -> None:
    servicer.labels = 500
    answers = client.analyze(["text"] * 1024)
    assert [len(answer.unwrap().classification.scores) for answer in answers] == [500] * 1024  # type: ignore[union-attr]


def test_message_with_too_many_items_is_halved_and_nothing_is_lost() -> None:
    subject = offered(flow(max_items=4), "abcd")
    assert ids(subject.take(1)) == ["0", "1", "2", "3"]
    assert subject.on_stream_error(TOO_MANY) == 0
    call = subject.begin_call()
    assert [ids(subject.take(call)), ids(subject.take(call))] == [["0", "1"], ["2", "3"]]


def test_smaller_messages_are_no_attempt_that_failed() -> None:
    subject = offered(flow(max_in_flight=64, max_items=64, max_attempts=1), "a" * 64)
    for size in (64, 32, 16, 8, 4, 2, 1):
        assert len(subject.take(subject.begin_call())) == size
        if size > 1:
            assert subject.on_stream_error(TOO_MANY) == 0
    assert subject.on_stream_error(TOO_MANY) is None  # one item cannot be too many
    assert subject.error is TOO_MANY


def test_only_the_largest_item_is_refused_for_its_size() -> None:
    subject = flow(order="completion")
    for text in ("a", "x" * 900, "y" * 2000, "b", "c"):
        subject.offer(text)
    assert [ids(subject.take(1)) for _ in range(3)] == [["0", "1"], ["2"], ["3"]]
    subject.on_stream_error(TOO_LARGE)
    (refused,) = subject.collect()
    assert refused.error is not None
    assert (refused.item_id, refused.error.reason, subject.unanswered, subject.closed) == (
        "2",
        "ITEM_TOO_LARGE",
        4,
        False,
    )


def test_answers_beside_the_refusal_of_a_message_count() -> None:
    subject = offered(flow(max_in_flight=6), "abcdef")
    first, second = subject.take(1), subject.take(1)
    refusal = Answer("", error=ItemError("INVALID_ARGUMENT", "TOO_MANY_ITEMS", "at most 2"))
    with pytest.raises(InvalidRequestError) as caught:
        subject.on_answers([*refusals_of(first[:1]), refusal, *answers_to(first[1:])])
    subject.on_stream_error(caught.value)
    assert (ids(subject.take(subject.begin_call())), subject.unanswered) == (ids(second[:1]), 4)


def test_limits_only_ever_fall() -> None:
    limits = MessageLimits()
    limits.halve_items(16)
    limits.halve_items(32)
    limits.halve_bytes(100)
    limits.halve_bytes(1000)
    assert (limits.items, limits.size_bytes) == (8, 50)

"""Both clients against a server with lower message limits than their own."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
from polyhead_client import Answer, InvalidRequestError, ItemError, ResourceExhaustedError
from polyhead_client.core.message_limits import MessageLimits

from tests.support.both_clients import Face
from tests.support.fake_server import BUSY, FakeServicer, label, labels, serve_fake
from tests.support.polling import wait_until
from tests.support.stream_states import answers_to, ids, new_state, offer_all, rejections_of

TOO_MANY = InvalidRequestError("INVALID_ARGUMENT", "at most 2", "TOO_MANY_ITEMS")
TOO_LARGE = ResourceExhaustedError("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (2000 vs. 1000)")


@pytest.fixture
def narrow() -> Iterator[FakeServicer]:
    """A server that accepts messages of at most 100 kB."""
    with serve_fake(max_message_bytes=100_000) as servicer:
        yield servicer


def test_batch_is_answered_by_a_server_with_a_low_item_limit(client: Face, servicer: FakeServicer) -> None:
    servicer.max_items = 8
    texts = [str(number) for number in range(100)]
    assert labels(client.analyze(texts)) == texts


def test_item_limit_found_by_one_call_applies_to_all_calls_of_the_client(client: Face, servicer: FakeServicer) -> None:
    servicer.max_items = 8
    client.analyze(map(str, range(100)))
    servicer.requests.clear()
    assert labels(client.analyze(["a"] * 20)) == ["a"] * 20
    assert labels(client.stream(["b"] * 20)) == ["b"] * 20
    assert max(len(request.items) for request in servicer.requests) <= 8


@pytest.mark.parametrize("order", ["request", "completion"])
def test_stream_to_a_server_with_a_low_item_limit_answers_each_item_once(
    client: Face, servicer: FakeServicer, order: str
) -> None:
    servicer.max_items = 3
    texts = [BUSY + str(number) if number % 7 == 0 else str(number) for number in range(300)]
    answers = list(client.stream(iter(texts), order=order))
    assert {int(answer.item_id): label(answer) for answer in answers} == dict(enumerate(texts))
    assert len(answers) == 300
    assert order == "completion" or labels(answers) == texts


def test_call_with_a_rejected_message_is_cancelled_when_the_next_one_starts(
    client: Face, servicer: FakeServicer
) -> None:
    servicer.max_items = 3
    sent: list[str] = []

    def texts() -> Iterator[str]:
        while len(servicer.calls) < 2 and len(sent) < 100_000:  # a slow reader sends several small messages first
            sent.append(str(len(sent)))
            yield sent[-1]
        wait_until(lambda: servicer.open_streams == 1)
        yield "last"

    assert labels(client.stream(texts())) == [*sent, "last"]
    assert len(servicer.calls) > 1


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_texts_that_are_too_large_together_are_sent_separately(connect: Any, narrow: FakeServicer, method: str) -> None:
    texts = ["x" * 60_000, "y" * 60_000, "z" * 20_000, *map(str, range(50))]
    assert labels(getattr(connect(narrow.target), method)(texts)) == texts


@pytest.mark.parametrize("method", ["analyze", "stream"])
def test_text_that_is_too_large_by_itself_gets_an_error_answer(connect: Any, narrow: FakeServicer, method: str) -> None:
    large = ("large", "x" * 120_000)
    answers = list(getattr(connect(narrow.target, max_attempts=1), method)(["first", large, "last"] * 8))
    rejected = [answer for answer in answers if answer.error]
    assert [answer.item_id for answer in rejected] == ["large"] * 8
    assert {answer.error.reason for answer in rejected} == {"ITEM_TOO_LARGE"}
    assert labels(answer for answer in answers if answer.result) == ["first", "last"] * 8


def test_error_answer_for_a_large_text_does_not_wait_for_more_texts(connect: Any, narrow: FakeServicer) -> None:
    texts: queue.SimpleQueue[str] = queue.SimpleQueue()
    texts.put("x" * 120_000)
    answers = connect(narrow.target).stream(iter(texts.get, "stop"))
    assert next(answers).error.reason == "ITEM_TOO_LARGE"
    texts.put("next")
    assert labels([next(answers)]) == ["next"]
    texts.put("stop")
    assert list(answers) == []


def test_responses_may_be_larger_than_any_request(client: Face, servicer: FakeServicer) -> None:
    servicer.labels = 50
    answers = client.analyze(["text"] * 1024)
    assert [len(answer.unwrap().classification.scores) for answer in answers] == [50] * 1024  # type: ignore[union-attr]


def test_splitting_a_message_does_not_count_as_a_failed_attempt() -> None:
    state = offer_all(new_state(max_in_flight=64, max_items=64, max_attempts=1), "a" * 64)
    for size in (64, 32, 16, 8, 4, 2, 1):
        assert len(state.take(state.begin_call())) == size
        if size > 1:
            assert state.on_stream_error(TOO_MANY) == 0
    assert state.on_stream_error(TOO_MANY) is None  # one item cannot be too many
    assert state.error is TOO_MANY


def test_only_the_largest_item_is_rejected_for_its_size() -> None:
    state = new_state(order="completion")
    for text in ("a", "x" * 900, "y" * 2000, "b", "c"):
        state.offer(text)
    assert [ids(state.take(1)) for _ in range(3)] == [["0", "1"], ["2"], ["3"]]
    state.on_stream_error(TOO_LARGE)
    (rejected,) = state.collect()
    assert rejected.error is not None
    assert (rejected.item_id, rejected.error.reason, state.unanswered, state.closed) == (
        "2",
        "ITEM_TOO_LARGE",
        4,
        False,
    )


def test_answers_beside_a_rejected_message_are_kept() -> None:
    state = offer_all(new_state(max_in_flight=6), "abcdef")
    first, second = state.take(1), state.take(1)
    rejection = Answer("", error=ItemError("INVALID_ARGUMENT", "TOO_MANY_ITEMS", "at most 2"))
    with pytest.raises(InvalidRequestError) as caught:
        state.on_answers([*rejections_of(first[:1]), rejection, *answers_to(first[1:])])
    state.on_stream_error(caught.value)
    assert (ids(state.take(state.begin_call())), state.unanswered) == (ids(second[:1]), 4)


def test_limits_never_increase() -> None:
    limits = MessageLimits()
    limits.halve_items(16)
    limits.halve_items(32)
    limits.halve_bytes(100)
    limits.halve_bytes(1000)
    assert (limits.max_items, limits.max_bytes) == (8, 50)

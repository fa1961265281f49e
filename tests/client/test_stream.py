"""Streams of both clients against a real server."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from polyhead.v1 import item_pb2
from polyhead_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    ItemFailedError,
    ServerError,
    Text,
    UnavailableError,
)

from tests.support.both_clients import AsyncFace, Face
from tests.support.fake_server import BREAK, END, ERROR, FakeServicer, embedding_of, label

UNICODE = [
    "",
    " ",
    "naïve café",
    "日本語のテキスト",
    "שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "a\0b",
    "line\nbreak\u2028here",
    "e\u0301",
    "\U0010ffff",
]


async def all_tasks_end() -> None:
    """Fails if a task of this loop keeps running."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    async with asyncio.timeout(10):
        await asyncio.gather(*others, return_exceptions=True)


def test_answers_come_in_request_order_with_running_ids(client: Face) -> None:
    texts = [f"text {number}" for number in range(1000)]
    answers = list(client.stream(iter(texts)))
    assert [label(answer) for answer in answers] == texts
    assert [answer.item_id for answer in answers] == [str(number) for number in range(1000)]


def test_plain_list_is_streamed_like_an_iterator(client: Face) -> None:
    assert [label(answer) for answer in client.stream(["one", "two"])] == ["one", "two"]


def test_item_ids_are_returned(client: Face) -> None:
    texts: list[Text] = [("é", "one"), ("é", "two"), "three"]
    answers = list(client.stream(iter(texts)))
    assert [(answer.item_id, label(answer)) for answer in answers] == [("é", "one"), ("é", "two"), ("2", "three")]


def test_every_kind_of_text_arrives_unchanged(client: Face) -> None:
    assert [label(answer) for answer in client.stream(iter(UNICODE))] == UNICODE


def test_empty_input_yields_no_answers(client: Face) -> None:
    assert list(client.stream(iter([]))) == []


def test_waiting_texts_share_one_message(client: Face, servicer: FakeServicer) -> None:
    servicer.gate.clear()
    servicer.answer_every = 4

    def texts() -> Iterator[str]:
        for number in range(40):
            if number == 20:  # by now many texts wait, and at most 4 were sent
                servicer.gate.set()
            yield str(number)

    answers = list(client.stream(texts(), max_in_flight=4))
    sizes = [len(request.items) for request in servicer.requests]
    first_four = list(itertools.accumulate(sizes)).index(4)
    assert [label(answer) for answer in answers] == [str(number) for number in range(40)]
    assert sizes[first_four + 1] == 4


def test_message_has_at_most_32_items(client: Face, servicer: FakeServicer) -> None:
    list(client.stream([str(number) for number in range(300)]))
    sizes = [len(request.items) for request in servicer.requests]
    assert sum(sizes) == 300
    assert max(sizes) <= 32


def test_large_texts_do_not_share_a_message(client: Face, servicer: FakeServicer) -> None:
    texts = ["x" * 200_000, "y" * 200_000, "z" * 3_000_000]
    assert [label(answer) for answer in client.stream(texts)] == texts
    assert [len(request.items) for request in servicer.requests] == [1, 1, 1]


def test_concurrency_limit_is_reached_and_never_exceeded(client: Face, servicer: FakeServicer) -> None:
    servicer.answer_every = 8  # the server waits for ever if the client keeps fewer in flight
    taken = 0
    furthest_ahead = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield str(taken)

    answers = client.stream(endless(), max_in_flight=8)
    for number, answer in enumerate(itertools.islice(answers, 400), start=1):
        assert label(answer) == str(number)
        furthest_ahead = max(furthest_ahead, taken - number)
    answers.close()  # type: ignore[attr-defined]
    assert servicer.max_in_flight_seen == 8
    # Items in flight, one message more, one text held by the reader, and the answers collected at once.
    assert furthest_ahead <= 8 + 32 + 1 + 8


def test_answer_is_returned_before_the_next_text_exists(client: Face) -> None:
    texts: queue.SimpleQueue[str] = queue.SimpleQueue()
    texts.put("0")
    seen = []
    for answer in client.stream(iter(texts.get, "stop")):
        seen.append(label(answer))
        texts.put(str(len(seen)) if len(seen) < 5 else "stop")
    assert seen == ["0", "1", "2", "3", "4"]


def test_closing_early_cancels_the_call_and_leaves_nothing_running(client: Face, servicer: FakeServicer) -> None:
    before = set(threading.enumerate())
    answers = client.stream(map(str, itertools.count()), max_in_flight=4)
    assert label(next(answers)) == "0"
    assert not servicer.stream_ended.is_set()
    servicer.gate.clear()  # from here on only cancellation ends the call
    running = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("polyhead")]
    answers.close()  # type: ignore[attr-defined]
    assert servicer.stream_ended.wait(10)
    for thread in running:
        thread.join(10)
    assert not any(thread.is_alive() for thread in running)
    if isinstance(client, AsyncFace):
        client.runner.run(all_tasks_end())
    servicer.gate.set()
    assert [label(answer) for answer in client.stream(["after"])] == ["after"]


def test_closing_the_client_ends_its_streams(client: Face, servicer: FakeServicer) -> None:
    answers = client.stream(map(str, itertools.count()), max_in_flight=4)
    next(answers)
    client.close()
    with pytest.raises(UnavailableError):
        list(answers)
    assert servicer.stream_ended.wait(10)


def test_exception_of_the_input_ends_the_call_with_that_exception(client: Face, servicer: FakeServicer) -> None:
    class BrokenInputError(Exception):
        pass

    answered = threading.Event()

    def texts() -> Iterator[str]:
        yield "one"
        answered.wait()
        raise BrokenInputError

    answers = client.stream(texts())
    assert label(next(answers)) == "one"
    answered.set()
    with pytest.raises(BrokenInputError):
        next(answers)
    assert servicer.stream_ended.wait(10)


def test_input_that_raises_the_end_of_another_iterator_has_failed(client: Face) -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise StopAsyncIteration

    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        list(client.stream(texts()))


def test_item_error_does_not_end_the_stream(client: Face) -> None:
    good, bad, after = client.stream(["good", ERROR + "no", "after"])
    assert (label(good), label(after)) == ("good", "after")
    assert bad.result is None
    assert bad.error is not None
    assert (bad.error.code, bad.error.reason, bad.error.message) == ("INVALID_ARGUMENT", "REQUESTED", "error:no")
    with pytest.raises(ItemFailedError, match="error:no"):
        bad.unwrap()


@pytest.mark.parametrize("order", ["request", "completion"])
def test_server_answers_in_completion_order_and_the_client_restores_the_order(
    client: Face, servicer: FakeServicer, order: str
) -> None:
    # The fake server answers the last item of a message first if the order allows it.
    answers = list(client.stream(["a", "b", "c"], order=order))
    assert {request.order for request in servicer.requests} == {item_pb2.ANSWER_ORDER_COMPLETION}
    assert sorted(answer.item_id for answer in answers) == list("012")
    assert order == "completion" or [answer.item_id for answer in answers] == list("012")


@pytest.mark.parametrize("order", ["request", "completion"])
def test_text_that_cannot_be_sent_is_answered_in_order(client: Face, order: str) -> None:
    texts = ["\udcff", "one", "half an emoji \ud83d", "x" * 17_000_000, "two", "\ud800"]
    answers = list(client.stream(texts, order=order))
    reasons = {answer.item_id: answer.error.reason for answer in answers if answer.error}
    assert reasons == {"0": "TEXT_NOT_UTF8", "2": "TEXT_NOT_UTF8", "3": "ITEM_TOO_LARGE", "5": "TEXT_NOT_UTF8"}
    assert {label(answer) for answer in answers if answer.result} == {"one", "two"}
    assert order == "completion" or [answer.item_id for answer in answers] == list("012345")


def test_text_that_cannot_be_sent_is_answered_without_waiting_for_more(client: Face) -> None:
    texts: queue.SimpleQueue[str] = queue.SimpleQueue()
    texts.put("\ud800")
    answers = client.stream(iter(texts.get, "stop"))
    assert next(answers).error is not None
    texts.put("stop")
    assert list(answers) == []


def test_many_texts_that_cannot_be_sent_do_not_block_those_that_can(client: Face) -> None:
    answers = list(client.stream(["first", *["\ud800"] * 500, "last"], max_in_flight=2))
    assert [answer.item_id for answer in answers] == [str(number) for number in range(502)]
    assert label(answers[-1]) == "last"


def test_broken_stream_raises_after_the_answers_it_received(client: Face) -> None:
    texts: queue.SimpleQueue[str] = queue.SimpleQueue()
    texts.put("one")
    answers = client.stream(iter(texts.get, "stop"))
    assert label(next(answers)) == "one"
    texts.put(BREAK)
    with pytest.raises(ServerError, match="requested failure") as caught:
        next(answers)
    texts.put("stop")
    assert caught.value.code == "INTERNAL"


def test_stream_that_ends_with_items_unanswered_raises(client: Face) -> None:
    with pytest.raises(ServerError, match="unanswered"):
        list(client.stream([END]))


def test_unreachable_server_raises_unavailable(connect: Any) -> None:
    with pytest.raises(UnavailableError):
        list(connect("127.0.0.1:1", max_attempts=2).stream(["text"]))


def test_deadline_ends_the_stream(client: Face, servicer: FakeServicer) -> None:
    servicer.gate.clear()
    with pytest.raises(DeadlineExceededError):
        list(client.stream(["text"], deadline_s=0.2))


def test_closed_client_rejects_a_stream(client: Face) -> None:
    client.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        list(client.stream(["text"]))


def test_options_reach_the_server(client: Face, servicer: FakeServicer) -> None:
    options: dict[str, Any] = {"tasks": ["sentiment", "embedding"], "order": "completion", "truncation": "error"}
    (answer,) = client.stream(["abc"], include_timings=True, encoding="float16", **options)
    request = servicer.requests[0]
    assert (list(request.tasks), request.order, request.options.truncation) == ([3, 1], 2, 2)
    result = answer.unwrap()
    assert result.timings is not None
    assert result.timings.total_s == 1.5
    assert result.embedding is not None
    assert result.embedding.dtype == np.float32
    np.testing.assert_array_equal(result.embedding, np.array(embedding_of("abc"), np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("stream", "StreamAnalyze"),
        ("stream_embed", "StreamEmbed"),
        ("stream_classify", "StreamClassify"),
        ("stream_sentiment", "StreamSentiment"),
    ],
)
def test_each_method_makes_its_own_rpc(client: Face, servicer: FakeServicer, method: str, call: str) -> None:
    expected = client.info()
    servicer.calls.clear()
    requested: dict[str, Any] = {"truncation": "window", "order": "completion", "include_timings": True}
    (answer,) = client.stream(["abc"], method, expected_fingerprints=expected, prompt="query", **requested)
    request = servicer.requests[0]
    assert servicer.calls == [call]
    assert label(answer) == "abc"
    assert request.options.expected_fingerprints.embedding_space == "00112233445566aa"
    assert (request.options.truncation, request.options.include_timings, request.order) == (3, True, 2)
    assert request.options.prompt == "query"


def test_threads_share_one_client(servicer: FakeServicer) -> None:
    seen: dict[int, list[str]] = {}

    def analyze_texts(client: Client, number: int) -> None:
        seen[number] = [label(answer) for answer in client.stream(f"{number}-{index}" for index in range(200))]

    with Client(servicer.target) as client:
        threads = [threading.Thread(target=analyze_texts, args=(client, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {number: [f"{number}-{index}" for index in range(200)] for number in range(6)}


@pytest.mark.parametrize("reader_waits", [True, False])
async def test_async_input_is_closed_with_its_stream(servicer: FakeServicer, reader_waits: bool) -> None:
    closed = asyncio.Event()

    async def texts() -> AsyncIterator[str]:
        try:
            for number in itertools.count():
                if reader_waits and number == 3:
                    await asyncio.Event().wait()
                yield str(number)
        finally:
            closed.set()

    source = texts()  # referenced, so that the garbage collector does not close it
    async with AsyncClient(servicer.target) as client, aclosing(client.stream(source)) as answers:
        assert label(await anext(answers)) == "0"
    assert closed.is_set()

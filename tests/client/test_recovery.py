"""Retries, hedging and load balancing of both clients, against real servers that fail, reject or hang."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from polyhead_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    ResourceExhaustedError,
    ServerError,
    UnavailableError,
)

from tests.support.both_clients import Face
from tests.support.fake_server import BUSY, FakeServicer, label
from tests.support.polling import until, wait_until

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
BUSY_CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
SERVICE = "polyhead.v1.InferenceService"


def received(servicer: FakeServicer) -> list[str]:
    """Returns every text that the server received, as often as it did."""
    return [item.text for request in servicer.requests for item in request.items]


@pytest.mark.parametrize(("order", "code"), [("request", UNAVAILABLE), ("completion", CANCELLED)])
def test_broken_stream_continues_and_answers_every_item_once(
    client: Face, servicer: FakeServicer, order: str, code: grpc.StatusCode
) -> None:
    servicer.stream_failures = [(1, code), (40, code), (0, code), (0, code), (33, code)]
    texts = [f"text {number}" for number in range(300)]
    answers = list(client.stream(iter(texts), order=order))
    assert servicer.calls == ["StreamAnalyze"] * 6
    assert sorted(answer.item_id for answer in answers) == sorted(str(number) for number in range(300))
    assert order == "completion" or [label(answer) for answer in answers] == texts
    assert {int(answer.item_id): label(answer) for answer in answers} == dict(enumerate(texts))


def test_broken_stream_continues_on_another_connection(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(1, UNAVAILABLE)]
    assert [label(answer) for answer in client.stream(["one", "two"])] == ["one", "two"]
    assert len(set(servicer.peers)) == len(servicer.calls) == 2


def test_failed_call_is_retried_on_another_connection(client: Face, servicer: FakeServicer) -> None:
    servicer.unary_failures = [UNAVAILABLE, UNAVAILABLE]
    client.analyze(["text"])
    assert len(set(servicer.peers)) == len(servicer.calls) == 3


def test_item_ids_survive_a_broken_stream(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(3, UNAVAILABLE)]
    answers = list(client.stream([("same", "a"), ("same", "b"), ("x" * 1000, "c"), ("same", "d")]))
    assert [(answer.item_id, label(answer)) for answer in answers] == [
        ("same", "a"),
        ("same", "b"),
        ("x" * 1000, "c"),
        ("same", "d"),
    ]


def test_answered_items_are_not_sent_again(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(2, UNAVAILABLE)]
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    waiting.put("one")
    answers = client.stream(iter(waiting.get, "stop"))
    assert label(next(answers)) == "one"
    waiting.put("two")
    assert label(next(answers)) == "two"
    waiting.put("three")
    assert label(next(answers)) == "three"
    waiting.put("stop")
    assert list(answers) == []
    assert received(servicer).count("one") == received(servicer).count("two") == 1


def test_stream_that_breaks_on_every_attempt_raises_after_the_answers_it_received(
    client: Face, servicer: FakeServicer
) -> None:
    servicer.stream_failures = [(2, UNAVAILABLE), *[(0, UNAVAILABLE)] * 10]
    answers = client.stream(["one", "two", "three"])
    assert [label(next(answers)), label(next(answers))] == ["one", "two"]
    # Without a look at the message: grpc.aio loses the status of a call that ends while a message is being sent.
    with pytest.raises(UnavailableError):
        next(answers)
    # "three" was in flight in five calls: the one that broke after two answers, and four that broke at once.
    assert len(servicer.calls) == 5


def test_stream_that_breaks_while_idle_continues_with_the_next_text(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(1, UNAVAILABLE)]
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    waiting.put("one")
    answers = client.stream(iter(waiting.get, "stop"))
    assert label(next(answers)) == "one"
    assert servicer.stream_ended.wait(10)
    waiting.put("two")
    assert label(next(answers)) == "two"
    waiting.put("stop")
    assert list(answers) == []
    assert len(servicer.calls) == 2


def test_stream_that_breaks_after_its_last_answer_is_not_opened_again(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(1, UNAVAILABLE)]
    assert [label(answer) for answer in client.stream(["one"])] == ["one"]
    assert len(servicer.calls) == 1


def test_deadline_covers_a_broken_stream_that_waits_for_texts(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(1, UNAVAILABLE)]
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    waiting.put("one")
    answers = client.stream(iter(waiting.get, "stop"), deadline_s=3.0)
    assert label(next(answers)) == "one"
    with pytest.raises(DeadlineExceededError):
        next(answers)
    waiting.put("stop")


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, BUSY_CODE, grpc.StatusCode.ABORTED])
def test_stream_with_a_final_error_is_not_retried(client: Face, servicer: FakeServicer, code: grpc.StatusCode) -> None:
    servicer.stream_failures = [(1, code)]
    with pytest.raises((ServerError, ResourceExhaustedError, UnavailableError), match="requested failure"):
        list(client.stream(["one", "two"]))
    assert len(servicer.calls) == 1


def test_one_attempt_disables_retries(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, max_attempts=1)
    servicer.stream_failures = [(1, UNAVAILABLE)]
    with pytest.raises(UnavailableError):
        list(client.stream(["one", "two"]))
    servicer.unary_failures = [UNAVAILABLE]
    with pytest.raises(UnavailableError):
        client.analyze(["one"])


def test_deadline_covers_all_attempts_of_a_stream(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, max_attempts=1000)
    servicer.stream_failures = [(0, UNAVAILABLE)] * 1000
    began = time.monotonic()
    with pytest.raises((UnavailableError, DeadlineExceededError)):  # whichever comes first
        list(client.stream(["one"], deadline_s=0.5))
    assert time.monotonic() - began < 5


def test_closing_a_stream_that_waits_for_its_next_attempt_is_quick(client: Face, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(1, UNAVAILABLE), *[(0, UNAVAILABLE)] * 3]
    answers = client.stream(map(str, itertools.count()), max_in_flight=2)
    next(answers)
    began = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("order", ["request", "completion"])
def test_items_rejected_for_overload_are_sent_again_in_a_stream(
    client: Face, servicer: FakeServicer, order: str
) -> None:
    texts = [BUSY + str(number) if number % 7 == 0 else str(number) for number in range(100)]
    answers = list(client.stream(iter(texts), order=order))
    assert {int(answer.item_id): label(answer) for answer in answers} == dict(enumerate(texts))
    assert order == "completion" or [label(answer) for answer in answers] == texts
    assert len(received(servicer)) == 100 + 15


def test_items_rejected_for_overload_are_sent_again_in_a_batch(client: Face, servicer: FakeServicer) -> None:
    texts = [BUSY + "a", "b", BUSY + "c"]
    assert [label(answer) for answer in client.analyze(texts)] == texts
    assert [len(request.items) for request in servicer.requests] == [3, 2]


def test_batch_keeps_its_answers_when_the_retry_of_a_rejected_item_fails(client: Face, servicer: FakeServicer) -> None:
    servicer.fail_after_busy = grpc.StatusCode.INTERNAL
    first, second = client.analyze(["a", BUSY + "b"])
    assert label(first) == "a"
    assert second.error is not None
    assert (second.error.code, servicer.calls) == ("RESOURCE_EXHAUSTED", ["Analyze"] * 2)


def test_item_rejected_for_overload_has_a_retry_delay(connect: Any, servicer: FakeServicer) -> None:
    (answer,) = connect(servicer.target, max_attempts=1).analyze([BUSY + "a"])
    assert (answer.error.code, answer.error.retry_after_s) == ("RESOURCE_EXHAUSTED", 0.02)


def test_call_rejected_for_overload_is_retried_after_the_requested_delay(client: Face, servicer: FakeServicer) -> None:
    servicer.unary_failures, servicer.pushback = [BUSY_CODE, BUSY_CODE], "150"
    began = time.monotonic()
    assert [label(answer) for answer in client.analyze(["text"])] == ["text"]
    assert servicer.calls == ["Analyze"] * 3
    assert time.monotonic() - began >= 0.3


def test_call_with_a_retry_delay_beyond_its_deadline_fails_at_once(client: Face, servicer: FakeServicer) -> None:
    servicer.unary_failures, servicer.pushback = [BUSY_CODE], "60000"
    with pytest.raises(ResourceExhaustedError) as caught:
        client.analyze(["text"], deadline_s=20)
    assert caught.value.retry_after_s == 60
    assert servicer.calls == ["Analyze"]


@pytest.mark.parametrize("pushback", ["-1", "soon"])
def test_push_back_that_forbids_retries_is_obeyed(client: Face, servicer: FakeServicer, pushback: str) -> None:
    servicer.unary_failures, servicer.pushback = [UNAVAILABLE], pushback
    with pytest.raises(UnavailableError):
        client.analyze(["text"])
    assert servicer.calls == ["Analyze"]


def test_slow_call_is_hedged_on_another_connection(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, hedge_after_s=0.1)
    servicer.hanging_calls = 1
    assert [label(answer) for answer in client.analyze(["text"])] == ["text"]
    assert servicer.hanging_call_ended.wait(10)  # the slower call was cancelled
    assert servicer.calls == ["Analyze"] * 2
    assert len(set(servicer.peers)) == 2


def test_fast_call_is_not_hedged(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, hedge_after_s=30)
    for _ in range(5):
        client.analyze(["text"])
    assert servicer.calls == ["Analyze"] * 5


def test_hedging_is_limited_by_its_budget(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, hedge_after_s=0.01)
    servicer.gate.clear()
    for _ in range(3):
        with pytest.raises(DeadlineExceededError):
            client.analyze(["text"], deadline_s=0.2)
    assert len(servicer.calls) <= 4  # without a budget 6


def test_failure_of_one_hedged_call_waits_for_the_other(
    connect: Any, servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(servicer.target, hedge_after_s=3)
    servicer.gate.clear()
    wait, waits = servicer.gate.wait, threading.Event()

    def wait_at_the_gate() -> bool:
        waits.set()
        return wait()

    monkeypatch.setattr(servicer.gate, "wait", wait_at_the_gate)
    answered: list[Any] = []
    thread = threading.Thread(target=lambda: answered.extend(client.analyze(["text"])))
    thread.start()
    assert waits.wait(20)
    servicer.unary_failures = [grpc.StatusCode.INTERNAL]  # the second call fails with it
    wait_until(lambda: not servicer.unary_failures)
    threading.Timer(0.3, servicer.gate.set).start()  # after the client has received the failure
    thread.join(20)
    assert [label(answer) for answer in answered] == ["text"]
    assert servicer.calls == ["Analyze"] * 2


def test_failed_call_with_hedging_is_retried(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target, hedge_after_s=30)
    servicer.unary_failures = [UNAVAILABLE, CANCELLED]
    assert [label(answer) for answer in client.analyze(["text"])] == ["text"]


def test_calls_of_threads_spread_over_the_connections(servicer: FakeServicer) -> None:
    servicer.gate.clear()
    with Client(servicer.target, connections=3) as client, ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(list, client.stream(iter(["text"]))) for _ in range(3)]
        wait_until(lambda: servicer.open_streams == 3)
        servicer.gate.set()
        for answers in streams:
            answers.result()
    assert len(set(servicer.peers)) == 3


async def test_calls_of_tasks_spread_over_the_connections(servicer: FakeServicer) -> None:
    servicer.gate.clear()
    async with AsyncClient(servicer.target, connections=3) as client:
        calls = [asyncio.create_task(client.analyze(["text"])) for _ in range(3)]
        await until(lambda: len(servicer.calls) >= 3)
        servicer.gate.set()
        await asyncio.gather(*calls)
    assert len(set(servicer.peers)) == 3


def test_sequential_calls_share_a_connection(client: Face, servicer: FakeServicer) -> None:
    for _ in range(5):
        client.analyze(["text"])
        list(client.stream(["text"]))
    assert len(set(servicer.peers)) == 1


def test_server_that_reports_not_serving_gets_no_new_calls(connect: Any, two_servicers: list[FakeServicer]) -> None:
    draining, healthy = two_servicers
    targets = ",".join(servicer.target for servicer in two_servicers)
    client = connect(f"ipv4:{targets}", wait_for_ready=True)
    while not (draining.calls and healthy.calls):  # control: both are used
        client.info()
    draining.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    draining.unary_failures = [grpc.StatusCode.INTERNAL] * 1000
    succeeded = 0
    while succeeded < 10:  # without the health update, every other call fails
        try:
            client.info()
            succeeded += 1
        except ServerError:
            succeeded = 0
    calls_after_update, before = len(draining.calls), len(healthy.calls)
    for _ in range(20):
        client.info()
    assert (len(draining.calls), len(healthy.calls)) == (calls_after_update, before + 20)

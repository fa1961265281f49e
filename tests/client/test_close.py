"""Calls that are running when their client is closed, for both clients."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from polyhead_client import AsyncClient, Client, UnavailableError
from polyhead_client.core.retry import RetryBudget

from tests.support.fake_server import BUSY, FakeServicer
from tests.support.polling import until, wait_until

# The delay is longer than any test waits: a call that sits it out fails the test.
PUSHBACK_MS, TIMEOUT_S = "60000", 20.0


@pytest.fixture(autouse=True)
def unavailable(servicer: FakeServicer) -> None:
    """The server rejects calls, with a retry delay of a minute."""
    servicer.unary_failures, servicer.pushback = [grpc.StatusCode.UNAVAILABLE] * 9, PUSHBACK_MS
    servicer.stream_failures = [(0, grpc.StatusCode.UNAVAILABLE)] * 9


CALLS: list[Callable[[Any], Any]] = [lambda client: client.analyze(["text"], deadline_s=None)]
CALLS.append(lambda client: client.info(deadline_s=None))


@pytest.mark.parametrize("call", CALLS)
def test_closing_the_client_ends_a_call_that_waits_for_its_next_attempt(
    servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    client = Client(servicer.target)
    failure = failure_of(lambda: call(client))
    wait_until(lambda: has_failed(client))
    client.close()
    assert_closed(failure.get(timeout=TIMEOUT_S))
    assert len(servicer.calls) == 1


@pytest.mark.parametrize("call", CALLS)
async def test_closing_the_async_client_ends_a_call_that_waits_for_its_next_attempt(
    servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    client = AsyncClient(servicer.target)
    task = asyncio.create_task(call(client))
    await until(lambda: has_failed(client))
    await client.close()
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(task, TIMEOUT_S)
    assert_closed(caught.value)
    assert len(servicer.calls) == 1


@pytest.mark.parametrize("call", CALLS)
def test_closing_the_client_ends_a_call_in_flight(servicer: FakeServicer, call: Callable[[Any], Any]) -> None:
    servicer.unary_failures = []
    servicer.gate.clear()
    client = Client(servicer.target)
    failure = failure_of(lambda: call(client))
    wait_until(lambda: servicer.calls)
    client.close()
    assert_closed(failure.get(timeout=TIMEOUT_S))


@pytest.mark.parametrize("call", CALLS)
async def test_closing_the_async_client_ends_a_call_in_flight(
    servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    servicer.unary_failures = []
    servicer.gate.clear()
    client = AsyncClient(servicer.target)
    task = asyncio.create_task(call(client))
    await until(lambda: servicer.calls)
    await client.close()
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(task, TIMEOUT_S)
    assert_closed(caught.value)


def test_closing_the_client_ends_a_stream_that_waits_for_its_next_attempt(servicer: FakeServicer) -> None:
    client = Client(servicer.target, max_attempts=1000)
    servicer.stream_failures *= 100
    failure = failure_of(lambda: list(client.stream(["text"])))
    wait_until(lambda: len(servicer.calls) >= 3)
    client.close()
    assert_closed(failure.get(timeout=TIMEOUT_S))


async def test_closing_the_async_client_ends_a_stream_that_waits_for_its_next_attempt(servicer: FakeServicer) -> None:
    client = AsyncClient(servicer.target, max_attempts=1000)
    servicer.stream_failures *= 100
    task = asyncio.create_task(collect(client.stream(["text"])))
    await until(lambda: len(servicer.calls) >= 3)
    await client.close()
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(task, TIMEOUT_S)
    assert_closed(caught.value)


def test_closing_the_client_ends_a_stream_that_waits_for_its_input(servicer: FakeServicer) -> None:
    servicer.stream_failures = []
    client, texts = Client(servicer.target), queue.SimpleQueue[str]()
    failure = failure_of(lambda: list(client.stream(iter(texts.get, "stop"))))
    wait_until(lambda: servicer.calls)
    client.close()
    assert_closed(failure.get(timeout=TIMEOUT_S))
    texts.put("stop")


def test_client_keeps_no_reference_to_a_finished_stream(servicer: FakeServicer) -> None:
    servicer.stream_failures = []
    with Client(servicer.target) as client:
        list(client.stream(["text", BUSY + "text"]))
        assert client.running_streams == 0


def has_failed(client: Any) -> bool:
    """Whether an attempt has failed, which costs a retry token."""
    return bool(client.retry_tokens < RetryBudget().tokens)


def test_interpreter_exits_with_an_open_stream(servicer: FakeServicer) -> None:
    servicer.stream_failures = []
    program = (
        "import itertools, sys; from polyhead_client import Client;"
        "answers = Client(sys.argv[1]).stream(map(str, itertools.count()), max_in_flight=4);"
        "next(answers)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, servicer.target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def failure_of(call: Callable[[], Any]) -> queue.SimpleQueue[Exception]:
    """Makes the call in a thread; returns a queue that receives its exception."""
    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  boundary of a thread
            failures.put(error)

    threading.Thread(target=run, daemon=True).start()
    return failures


async def collect(answers: Any) -> list[Any]:
    return [answer async for answer in answers]


def assert_closed(failure: Exception) -> None:
    assert isinstance(failure, UnavailableError)
    assert "client was closed" in failure.message

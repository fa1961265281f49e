"""What becomes of calls whose client is closed, of both clients."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from polyhead_client import AsyncClient, Client, UnavailableError
from polyhead_client.core.retry import RetryBudget

from tests.support.fake_server import BUSY, FakeServicer

# Longer than any test waits: a call that sleeps it off fails the test.
PUSHBACK_MS, PATIENCE_S = "60000", 20.0


@pytest.fixture(autouse=True)
def away(servicer: FakeServicer) -> None:
    """The server wants to be asked again in a minute."""
    servicer.refusals, servicer.pushback = [grpc.StatusCode.UNAVAILABLE] * 9, PUSHBACK_MS
    servicer.breaks = [(0, grpc.StatusCode.UNAVAILABLE)] * 9


def wait_until(happened: Callable[[], Any]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.005)


CALLS: list[Callable[[Any], Any]] = [lambda client: client.analyze(["text"], deadline_s=None)]
CALLS.append(lambda client: client.info(deadline_s=None))


@pytest.mark.parametrize("call", CALLS)
def test_call_that_waits_for_its_next_attempt_ends_with_its_client(
    servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    client = Client(servicer.target)
    failure = ended(lambda: call(client))
    wait_until(lambda: has_failed(client))
    client.close()
    assert_closed(failure.get(timeout=PATIENCE_S))
    assert len(servicer.calls) == 1


@pytest.mark.parametrize("call", CALLS)
async def test_async_call_that_waits_for_its_next_attempt_ends_with_its_client(
    servicer: FakeServicer, call: Callable[[Any], Any]
) -> None:
    client = AsyncClient(servicer.target)
    task = asyncio.create_task(call(client))
    await asyncio.to_thread(wait_until, lambda: has_failed(client))
    await client.close()
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(task, PATIENCE_S)
    assert_closed(caught.value)
    assert len(servicer.calls) == 1


def test_stream_that_waits_for_its_next_attempt_ends_with_its_client(servicer: FakeServicer) -> None:
    client = Client(servicer.target, max_attempts=1000)
    servicer.breaks *= 100
    failure = ended(lambda: list(client.stream(["text"])))
    wait_until(lambda: len(servicer.calls) >= 3)
    client.close()
    assert_closed(failure.get(timeout=PATIENCE_S))


async def test_async_stream_that_waits_for_its_next_attempt_ends_with_its_client(servicer: FakeServicer) -> None:
    client = AsyncClient(servicer.target, max_attempts=1000)
    servicer.breaks *= 100
    task = asyncio.create_task(whole(client.stream(["text"])))
    await asyncio.to_thread(wait_until, lambda: len(servicer.calls) >= 3)
    await client.close()
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(task, PATIENCE_S)
    assert_closed(caught.value)


def test_stream_that_waits_for_its_input_ends_with_its_client(servicer: FakeServicer) -> None:
    servicer.breaks = []
    client, texts = Client(servicer.target), queue.SimpleQueue[str]()
    failure = ended(lambda: list(client.stream(iter(texts.get, "stop"))))
    wait_until(lambda: servicer.calls)
    client.close()
    assert_closed(failure.get(timeout=PATIENCE_S))
    texts.put("stop")


def test_closed_client_keeps_no_stream(servicer: FakeServicer) -> None:
    servicer.breaks = []
    with Client(servicer.target) as client:
        list(client.stream(["text", BUSY + "text"]))
        assert client.running_streams == 0


def has_failed(client: Any) -> bool:
    """Whether an attempt came to nothing, as the brake on attempts knows."""
    return bool(client.retry_tokens < RetryBudget().tokens)


def ended(call: Callable[[], Any]) -> queue.SimpleQueue[Exception]:
    """Makes the call in a thread; what it raises comes out of the queue."""
    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  the edge of a thread
            failures.put(error)

    threading.Thread(target=run, daemon=True).start()
    return failures


async def whole(answers: Any) -> list[Any]:
    return [answer async for answer in answers]


def assert_closed(failure: Exception) -> None:
    assert isinstance(failure, UnavailableError)
    assert "client was closed" in failure.message

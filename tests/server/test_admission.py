from __future__ import annotations

import asyncio
import time

import pytest
from polyhead_server.admission import Admission
from polyhead_server.errors import ExpiredError, OverloadedError


class Queue:
    """How many tokens are said to wait."""

    tokens = 0


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def admission(queue: Queue) -> Admission:
    """Two workers that were seen to do 1,000 tokens a second each; at most 2 s of queue."""
    admission = Admission(2, 2.0, lambda: queue.tokens)
    admission.learn(tokens=1000, compute_s=1.0)
    return admission


def test_expected_wait_is_the_queue_divided_by_the_rate_of_all_workers(admission: Admission, queue: Queue) -> None:
    queue.tokens = 1000
    assert admission.expected_wait_s() == pytest.approx(0.5)


def test_rate_follows_what_is_seen(admission: Admission, queue: Queue) -> None:
    queue.tokens = 1000
    for _ in range(100):
        admission.learn(tokens=500, compute_s=1.0)
    assert admission.expected_wait_s() == pytest.approx(1.0, rel=0.01)


def test_everything_is_admitted_before_the_first_pass() -> None:
    Admission(1, 0.001, lambda: 10**9).admit(None, 1, may_refuse=True)


def test_item_is_refused_when_the_wait_exceeds_the_limit(admission: Admission, queue: Queue) -> None:
    queue.tokens = 3999
    admission.admit(None, 0, may_refuse=True)
    queue.tokens = 8000
    with pytest.raises(OverloadedError) as caught:
        admission.admit(None, 0, may_refuse=True)
    assert caught.value.retry_after_s == pytest.approx(2.0)


def test_texts_that_are_not_tokenized_yet_count_until_they_are_released(admission: Admission) -> None:
    admission.admit(None, 8000, may_refuse=True)
    with pytest.raises(OverloadedError):
        admission.admit(None, 1, may_refuse=True)
    admission.release(8000)
    admission.admit(None, 1, may_refuse=True)


def test_item_is_refused_when_the_wait_exceeds_its_deadline(admission: Admission, queue: Queue) -> None:
    queue.tokens = 2000
    for may_refuse in (True, False):
        with pytest.raises(OverloadedError):
            admission.admit(time.monotonic() + 0.5, 0, may_refuse=may_refuse)


def test_stream_is_not_refused_for_the_servers_limit(admission: Admission, queue: Queue) -> None:
    queue.tokens = 8000
    admission.admit(None, 0, may_refuse=False)


def test_item_whose_deadline_passed_is_expired(admission: Admission) -> None:
    with pytest.raises(ExpiredError):
        admission.admit(time.monotonic() - 0.001, 0, may_refuse=True)


async def test_stream_waits_for_room_and_is_let_in(admission: Admission, queue: Queue) -> None:
    queue.tokens = 8000
    waiting = asyncio.ensure_future(admission.room())
    await asyncio.sleep(0)
    admission.wake()
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.tokens = 1000
    admission.wake()
    await asyncio.wait_for(waiting, 10)


async def test_stream_is_let_in_when_what_was_in_its_way_never_reached_the_queue(admission: Admission) -> None:
    admission.admit(None, 8000, may_refuse=True)
    waiting = asyncio.ensure_future(admission.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.release(8000)
    await asyncio.wait_for(waiting, 10)


async def test_streams_that_wake_together_look_again(admission: Admission, queue: Queue) -> None:
    queue.tokens = 8000

    async def enter() -> None:
        await admission.room()
        queue.tokens += 4000

    waiting = [asyncio.ensure_future(enter()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.tokens = 1000
    admission.wake()
    for _ in range(5):
        await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    for task in waiting:
        task.cancel()


async def test_stream_that_went_away_does_not_disturb_the_others(admission: Admission, queue: Queue) -> None:
    queue.tokens = 8000
    gone, other = (asyncio.ensure_future(admission.room()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    queue.tokens = 0
    admission.wake()
    await asyncio.wait_for(other, 10)

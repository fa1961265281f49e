from __future__ import annotations

import asyncio
import time

import pytest
from polyhead_server.admission import Admission
from polyhead_server.errors import ExpiredError, OverloadedError


@pytest.fixture
def admission() -> Admission:
    """Two workers that were seen to do 1,000 tokens a second each; at most 2 s of queue."""
    admission = Admission(workers=2, max_queue_s=2.0)
    admission.observe(tokens=1000, compute_s=1.0, waiting_tokens=0)
    return admission


def test_expected_wait_is_the_queue_divided_by_the_rate_of_all_workers(admission: Admission) -> None:
    assert admission.expected_wait_s(1000) == pytest.approx(0.5)


def test_rate_follows_what_is_seen(admission: Admission) -> None:
    for _ in range(100):
        admission.observe(tokens=500, compute_s=1.0, waiting_tokens=0)
    assert admission.expected_wait_s(1000) == pytest.approx(1.0, rel=0.01)


def test_everything_is_admitted_before_the_first_pass() -> None:
    Admission(workers=1, max_queue_s=0.001).admit(10**9, deadline=None)


def test_item_is_refused_when_the_wait_exceeds_the_limit(admission: Admission) -> None:
    admission.admit(3999, deadline=None)
    with pytest.raises(OverloadedError) as caught:
        admission.admit(8000, deadline=None)
    assert caught.value.retry_after_s == pytest.approx(2.0)


def test_item_is_refused_when_the_wait_exceeds_its_deadline(admission: Admission) -> None:
    with pytest.raises(OverloadedError):
        admission.admit(2000, deadline=time.monotonic() + 0.5)


def test_item_whose_deadline_passed_is_expired(admission: Admission) -> None:
    with pytest.raises(ExpiredError):
        admission.admit(0, deadline=time.monotonic() - 0.001)


async def test_stream_waits_for_room_and_is_let_in(admission: Admission) -> None:
    waiting = asyncio.ensure_future(admission.room(8000))
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.observe(tokens=1000, compute_s=1.0, waiting_tokens=8000)
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.observe(tokens=1000, compute_s=1.0, waiting_tokens=1000)
    await asyncio.wait_for(waiting, 10)


async def test_stream_that_went_away_does_not_disturb_the_others(admission: Admission) -> None:
    gone, other = (asyncio.ensure_future(admission.room(8000)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    admission.observe(tokens=1000, compute_s=1.0, waiting_tokens=0)
    await asyncio.wait_for(other, 10)

from __future__ import annotations

import asyncio
import time

import pytest
from polyhead_server.errors import ExpiredError, OverloadedError
from polyhead_server.inference.admission import Admission, Size
from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler, Entry, Flow
from polyhead_server.inference.types import ItemOutcome, TokenizedText


@pytest.fixture
async def queue() -> BatchScheduler:
    return BatchScheduler(BatchLimits(max_tokens=10_000, max_padding=0.12, overhead_tokens=16))


@pytest.fixture
def admission(queue: BatchScheduler) -> Admission:
    """Two workers that do 1,000 tokens a second each; at most 2 s, or 10,000 tokens, of queue."""
    return Admission(queue, 2, max_queue_s=2.0, max_queue_tokens=10_000, tokens_per_s=1000)


def sizes(*tokens: int) -> list[Size]:
    """Of texts that are tokenized at once."""
    return [Size(number, 0) for number in tokens]


def put(queue: BatchScheduler, tokens: int, call: Flow | None = None) -> None:
    future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
    ids = [7] * tokens
    queue.put([Entry(call or Flow(), TokenizedText((ids,), tokens), ids, future, None, 0, 0, 0)])


def admits(admission: Admission, size: int, deadline_s: float | None = None, call: Flow | None = None) -> bool:
    """Whether an item of a unary call may enter; leaves nothing reserved."""
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    entered, _ = admission.admit(call or Flow(), sizes(size), deadline, patient=False)
    admission.release(sizes(size)[:entered])
    return entered == 1


async def test_expected_wait_is_the_queue_divided_by_the_rate_of_all_workers(
    admission: Admission, queue: BatchScheduler
) -> None:
    put(queue, 1000)
    assert admission.expected_wait_s() == pytest.approx(0.5)


async def test_rate_follows_what_is_seen(admission: Admission, queue: BatchScheduler) -> None:
    put(queue, 1000)
    for _ in range(100):
        admission.learn(tokens=500, compute_s=1.0, backlog=True)
    assert admission.expected_wait_s() == pytest.approx(1.0, rel=0.01)


async def test_unary_call_counts_whole_until_its_last_text_is_computed(
    admission: Admission, queue: BatchScheduler
) -> None:
    call = Flow(whole=True)
    put(queue, 800, call)
    put(queue, 200, call)
    batch = queue.take()
    assert batch is not None
    assert batch.tokens == 800
    # 200 tokens wait, but the call takes as long as 1,000 in all, for others have their turns before its last ones.
    assert not admits(admission, 1000, deadline_s=1.0)
    queue.take()
    assert admits(admission, 1000, deadline_s=1.0)


async def test_stream_counts_what_waits(admission: Admission, queue: BatchScheduler) -> None:
    call = Flow()
    put(queue, 800, call)
    put(queue, 200, call)
    queue.take()
    assert admits(admission, 1000, deadline_s=1.0)


async def test_everything_with_room_is_admitted_before_a_rate_is_known(queue: BatchScheduler) -> None:
    admission = Admission(queue, 1, max_queue_s=0.001, max_queue_tokens=10_000, tokens_per_s=0)
    put(queue, 9000)
    assert admits(admission, 1000)
    assert not admits(admission, 1001)


async def test_unary_item_is_refused_when_its_wait_exceeds_the_limit(
    admission: Admission, queue: BatchScheduler
) -> None:
    for _ in range(10):
        put(queue, 390)
    assert admits(admission, 100)
    for _ in range(10):
        put(queue, 390)
    # 20 calls that wait: 21 shares of 100 tokens are little over a second, of 300 tokens more than three.
    assert admits(admission, 100)
    assert not admits(admission, 300)
    _, refusal = admission.admit(Flow(), sizes(300), None, patient=False)
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s == pytest.approx(6300 / 2000 / 2)


async def test_single_text_is_admitted_however_much_a_stream_has_sent(
    admission: Admission, queue: BatchScheduler
) -> None:
    stream = Flow()
    for _ in range(16):
        put(queue, 500, stream)
    assert admits(admission, 100, deadline_s=0.2)
    assert not admits(admission, 100, deadline_s=0.2, call=stream)


async def test_queue_has_a_bound_in_tokens(admission: Admission, queue: BatchScheduler) -> None:
    stream = Flow()
    put(queue, 9950, stream)
    assert admits(admission, 50)
    assert not admits(admission, 51)
    _, refusal = admission.admit(Flow(), sizes(51), None, patient=False)
    assert "10001 tokens would wait, the limit is 10000" in str(refusal)


async def test_texts_that_are_not_tokenized_yet_count_until_they_are_released(admission: Admission) -> None:
    assert admission.admit(Flow(), sizes(9990), None, patient=False)[0] == 1
    assert not admits(admission, 11)
    admission.release(sizes(9990))
    assert admits(admission, 11)


async def test_item_is_refused_when_it_cannot_be_answered_before_its_deadline(
    admission: Admission, queue: BatchScheduler
) -> None:
    put(queue, 1000)
    for patient in (True, False):
        for left_s, entered in ((1.0, 1), (0.5, 0)):
            deadline = time.monotonic() + left_s
            # Both have half of the machine: 600 tokens take 0.6 s, and 0.65 of the time may be filled.
            assert admission.admit(Flow(), sizes(600), deadline, patient=patient)[0] == entered
            admission.release(sizes(600)[:entered])
        assert isinstance(admission.admit(Flow(), sizes(600), deadline, patient=patient)[1], OverloadedError)


async def test_nothing_is_refused_when_nothing_is_before_it(admission: Admission) -> None:
    admission.learn(tokens=1000, compute_s=1.0, backlog=True)
    assert admits(admission, 9000, deadline_s=0.1)


async def test_unary_message_enters_whole_or_not_at_all(admission: Admission, queue: BatchScheduler) -> None:
    put(queue, 9000)
    assert admission.admit(Flow(), sizes(*[100] * 10), None, patient=False)[0] == 10
    admission.release(sizes(*[100] * 10))
    assert admission.admit(Flow(), sizes(*[100] * 11), None, patient=False)[0] == 0
    _, refusal = admission.admit(Flow(), sizes(*[100] * 11), None, patient=False)
    assert "10100 tokens would wait" in str(refusal)


async def test_message_that_no_queue_could_take_enters_as_far_as_it_fits(admission: Admission) -> None:
    deadline = time.monotonic() + 1.0
    # 2,000 tokens a second, of which 0.65 may be promised.
    assert admission.admit(Flow(), sizes(*[100] * 50), deadline, patient=False)[0] in {12, 13}
    assert admission.admit(Flow(), sizes(*[100] * 200), None, patient=False)[0] < 100


async def test_stream_is_not_refused_for_the_servers_limits(admission: Admission, queue: BatchScheduler) -> None:
    put(queue, 10_000)
    assert admission.admit(Flow(), sizes(1000, 1000), None, patient=True)[0] == 2


async def test_item_whose_deadline_passed_is_expired(admission: Admission) -> None:
    passed = time.monotonic() - 0.001
    for patient in (True, False):
        assert admission.admit(Flow(), sizes(1), passed, patient=patient)[0] == 0
        assert isinstance(admission.admit(Flow(), sizes(1), passed, patient=patient)[1], ExpiredError)


async def test_stream_waits_for_room_and_is_let_in(admission: Admission, queue: BatchScheduler) -> None:
    stream = Flow()
    put(queue, 3000)
    put(queue, 1000, stream)
    waiting = asyncio.ensure_future(admission.room(stream))
    await asyncio.sleep(0)
    admission.wake()
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.take()
    admission.wake()
    await asyncio.wait_for(waiting, 10)


async def test_stream_that_has_nothing_in_the_queue_is_let_in_until_it_is_full(
    admission: Admission, queue: BatchScheduler
) -> None:
    put(queue, 9999)
    await asyncio.wait_for(admission.room(Flow()), 10)
    put(queue, 1)
    waiting = asyncio.ensure_future(admission.room(Flow()))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_streams_leave_half_of_the_queue_to_others(queue: BatchScheduler) -> None:
    admission = Admission(queue, 1, max_queue_s=1e9, max_queue_tokens=10_000, tokens_per_s=1000)
    stream = Flow()
    put(queue, 5001, stream)
    waiting = asyncio.ensure_future(admission.room(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert admits(admission, 4999)
    waiting.cancel()


async def test_stream_is_let_in_when_what_was_in_its_way_never_reached_the_queue(
    admission: Admission, queue: BatchScheduler
) -> None:
    stream = Flow()
    put(queue, 10, stream)
    admission.admit(Flow(), sizes(8000), None, patient=True)
    waiting = asyncio.ensure_future(admission.room(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.release(sizes(8000))
    await asyncio.wait_for(waiting, 10)


async def test_streams_that_wake_together_look_again(admission: Admission, queue: BatchScheduler) -> None:
    admission.admit(Flow(), sizes(8000), None, patient=True)

    async def enter(stream: Flow) -> None:
        await admission.room(stream)
        admission.admit(stream, sizes(4000), None, patient=True)

    streams = [Flow() for _ in range(3)]
    for stream in streams:
        put(queue, 10, stream)
    waiting = [asyncio.ensure_future(enter(stream)) for stream in streams]
    await asyncio.sleep(0)
    admission.release(sizes(8000))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    for task in waiting:
        task.cancel()


async def test_stream_that_went_away_does_not_disturb_the_others(admission: Admission, queue: BatchScheduler) -> None:
    stream = Flow()
    put(queue, 10, stream)
    admission.admit(Flow(), sizes(8000), None, patient=True)
    gone, other = (asyncio.ensure_future(admission.room(stream)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    admission.release(sizes(8000))
    await asyncio.wait_for(other, 10)


async def test_small_passes_say_nothing_about_the_rate_of_large_ones(
    admission: Admission, queue: BatchScheduler
) -> None:
    put(queue, 1000)
    for _ in range(100):
        admission.learn(tokens=8, compute_s=0.5, backlog=False)
    assert admission.expected_wait_s() == pytest.approx(0.5)


async def test_long_texts_are_refused_when_tokenizing_those_before_them_takes_too_long(
    admission: Admission, queue: BatchScheduler
) -> None:
    put(queue, 10)
    # A million code points a second until another rate was seen, and at most 2 s of queue.
    long = [Size(100, 400_000)] * 6
    assert admission.admit(Flow(), long, None, patient=False)[0] == 4
    _, refusal = admission.admit(Flow(), long[:1], None, patient=False)
    assert isinstance(refusal, OverloadedError)
    # A short text does not wait for them.
    assert admits(admission, 100)
    admission.release(long[:4])
    for _ in range(100):
        admission.tokenized(100_000, 1.0)
    assert admission.admit(Flow(), long, None, patient=False)[0] == 0


async def test_many_that_leave_together_wake_once(
    admission: Admission, queue: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, looks = Flow(), 0
    put(queue, 10, stream)
    admission.admit(Flow(), sizes(8000), None, patient=True)
    waiting = [asyncio.ensure_future(admission.room(stream)) for _ in range(10)]
    await asyncio.sleep(0)
    look = admission._has_room

    def count(call: Flow) -> bool:
        nonlocal looks
        looks += 1
        return look(call)

    monkeypatch.setattr(admission, "_has_room", count)
    for _ in range(100):
        admission.wake()
    await asyncio.sleep(0)
    assert looks == 10
    for task in waiting:
        task.cancel()

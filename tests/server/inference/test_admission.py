from __future__ import annotations

import time

import pytest
from polyhead_server.errors import ExpiredError, OverloadedError
from polyhead_server.inference.admission import Admission
from polyhead_server.inference.scheduler import BatchLimits, BatchScheduler
from polyhead_server.inference.types import EstimatedSize, Flow

from tests.support.queue_entries import admits, put, sizes


@pytest.fixture
async def scheduler() -> BatchScheduler:
    return BatchScheduler(BatchLimits(max_tokens=10_000, max_padding=0.12, overhead_tokens=16))


async def test_expected_wait_is_the_queue_divided_by_the_rate_of_all_workers(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    put(scheduler, 1000)
    assert admission.expected_wait_s() == pytest.approx(0.5)


async def test_unary_call_counts_whole_until_its_last_text_is_computed(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    flow = Flow(unary=True)
    put(scheduler, 800, flow)
    put(scheduler, 200, flow)
    batch = scheduler.take()
    assert batch is not None
    assert batch.tokens == 800
    # 200 tokens wait, but the call takes as long as 1,000 in total, for others are served before its last text.
    assert not admits(admission, 1000, deadline_s=1.0)
    scheduler.take()
    assert admits(admission, 1000, deadline_s=1.0)


async def test_stream_counts_only_its_waiting_tokens(admission: Admission, scheduler: BatchScheduler) -> None:
    flow = Flow()
    put(scheduler, 800, flow)
    put(scheduler, 200, flow)
    scheduler.take()
    assert admits(admission, 1000, deadline_s=1.0)


async def test_everything_with_capacity_is_admitted_before_a_rate_is_known(scheduler: BatchScheduler) -> None:
    admission = Admission(scheduler.accounting, 1, max_queue_s=0.001, max_queue_tokens=10_000, tokens_per_s=0)
    flow = Flow()
    put(scheduler, 9000, flow)
    assert admits(admission, 1000, flow=flow)
    assert not admits(admission, 1001, flow=flow)


async def test_unary_item_is_rejected_when_its_wait_exceeds_the_limit(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    for _ in range(10):
        put(scheduler, 390)
    assert admits(admission, 100)
    for _ in range(10):
        put(scheduler, 390)
    # With 20 waiting calls, 21 shares of 100 tokens take little over a second, of 300 tokens more than three.
    assert admits(admission, 100)
    assert not admits(admission, 300)
    _, rejection = admission.admit(Flow(), sizes(300), None, blocking=False)
    assert isinstance(rejection, OverloadedError)
    assert rejection.retry_after_s == pytest.approx(6300 / 2000 / 2)


async def test_single_text_is_admitted_however_much_of_a_stream_waits(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    stream = Flow()
    for _ in range(16):
        put(scheduler, 500, stream)
    assert admits(admission, 100, deadline_s=0.2)
    assert not admits(admission, 100, deadline_s=0.2, flow=stream)


async def test_queue_has_a_limit_in_tokens(admission: Admission, scheduler: BatchScheduler) -> None:
    flow = Flow()
    put(scheduler, 9950, flow)
    patient = Admission(scheduler.accounting, 2, max_queue_s=1e9, max_queue_tokens=10_000, tokens_per_s=1000)
    assert admits(patient, 50, flow=flow)
    assert not admits(patient, 51, flow=flow)
    _, rejection = patient.admit(flow, sizes(51), None, blocking=False)
    assert isinstance(rejection, OverloadedError)
    assert "10001 tokens would wait, the limit is 10000" in str(rejection)
    assert rejection.retry_after_s == pytest.approx(10_001 / 2000 / 2)


async def test_call_may_use_its_share_of_a_queue_that_others_fill(scheduler: BatchScheduler) -> None:
    admission = Admission(scheduler.accounting, 2, max_queue_s=1e9, max_queue_tokens=10_000, tokens_per_s=1000)
    put(scheduler, 20_000)
    # Two calls: each has a share of 5,000 tokens, and its first item whatever the size.
    assert admission.first_rejected(Flow(), sizes(*[100] * 60), 1e9, blocking=False)[0] == 50
    assert admits(admission, 5000)
    assert admits(admission, 6000)
    for _ in range(8):
        put(scheduler, 100)
    assert admission.first_rejected(Flow(), sizes(*[100] * 60), 1e9, blocking=False)[0] == 10


async def test_reserved_texts_count_until_they_are_released(admission: Admission) -> None:
    flow = Flow()
    assert admission.admit(flow, sizes(3990), None, blocking=False)[0] == 1
    assert not admits(admission, 11, flow=flow)
    admission.release(flow, sizes(3990))
    assert admits(admission, 11, flow=flow)


async def test_item_is_rejected_when_it_cannot_be_answered_before_its_deadline(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    put(scheduler, 1000)
    for blocking in (True, False):
        for left_s, admitted in ((1.0, 1), (0.5, 0)):
            deadline, flow = time.monotonic() + left_s, Flow()
            # Each of both flows gets half of the machine: 600 tokens take 0.6 s, and 0.65 of the time may be filled.
            assert admission.admit(flow, sizes(600), deadline, blocking=blocking)[0] == admitted
            admission.release(flow, sizes(600)[:admitted])
        assert isinstance(admission.admit(Flow(), sizes(600), deadline, blocking=blocking)[1], OverloadedError)


async def test_first_item_is_admitted_when_nothing_waits(admission: Admission) -> None:
    admission.observe_batch(tokens=1000, compute_s=1.0, backlog=True)
    assert admits(admission, 9000, deadline_s=0.1)


async def test_unary_message_is_admitted_whole_or_not_at_all(admission: Admission, scheduler: BatchScheduler) -> None:
    flow = Flow()
    put(scheduler, 9000)
    # Two calls: half of 2,000 tokens a second for each, for at most 2 s.
    assert admission.admit(flow, sizes(*[100] * 20), None, blocking=False)[0] == 20
    admission.release(flow, sizes(*[100] * 20))
    assert admission.admit(flow, sizes(*[100] * 21), None, blocking=False)[0] == 0
    _, rejection = admission.admit(flow, sizes(*[100] * 21), None, blocking=False)
    assert "the expected wait is 2.10 s" in str(rejection)


async def test_message_that_just_fits_an_empty_queue_is_rejected_whole(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    put(scheduler, 10)
    assert admission.admit(Flow(), sizes(*[100] * 40), None, blocking=False)[0] == 0
    # 2 s of queue, which 4,000 tokens fill: one text more would not fit an empty queue either.
    assert admission.admit(Flow(), sizes(*[100] * 41), None, blocking=False)[0] == 39


async def test_message_too_large_for_an_empty_queue_is_admitted_as_far_as_it_fits(admission: Admission) -> None:
    deadline = time.monotonic() + 1.0
    # 2,000 tokens a second, and 0.65 of a second may be filled.
    assert admission.admit(Flow(), sizes(*[100] * 50), deadline, blocking=False)[0] in {12, 13}
    assert admission.admit(Flow(), sizes(*[100] * 200), None, blocking=False)[0] < 100


async def test_stream_is_not_rejected_for_queue_limits(admission: Admission, scheduler: BatchScheduler) -> None:
    put(scheduler, 10_000)
    flow = Flow()
    # Streams share 2,000 tokens, which take 1 s: the first item has a place, and the others wait without an error.
    assert admission.admit(flow, sizes(900, 200, 200), None, blocking=True) == (1, None)
    assert admission.admit(flow, sizes(200), None, blocking=True) == (1, None)
    assert not admission.has_capacity(flow)
    assert admission.admit(flow, sizes(200), None, blocking=True) == (0, None)


@pytest.mark.parametrize("tokens", [1, 100, 3000, 20_000])
@pytest.mark.parametrize("streams", [1, 3, 60])
async def test_streams_that_send_without_end_hold_their_shares_of_the_queue(
    admission: Admission, scheduler: BatchScheduler, streams: int, tokens: int
) -> None:
    flows = [Flow() for _ in range(streams)]
    for flow in flows:
        while admission.has_capacity(flow):
            admitted, error = admission.admit(flow, sizes(*[tokens] * 50), None, blocking=True)
            assert admitted
            assert error is None
    # Half of the queue in total, of which later streams get smaller shares, and one item for each stream.
    harmonic = sum(1 / number for number in range(1, streams + 1))
    assert scheduler.accounting.pending_tokens <= 2000 * harmonic + streams * tokens
    assert all(flow.pending_tokens for flow in flows)
    # A call that has nothing in the queue is admitted.
    assert admits(admission, 10)
    assert admission.has_capacity(Flow())


async def test_item_whose_deadline_passed_is_expired(admission: Admission) -> None:
    passed = time.monotonic() - 0.001
    for blocking in (True, False):
        assert admission.admit(Flow(), sizes(1), passed, blocking=blocking)[0] == 0
        assert isinstance(admission.admit(Flow(), sizes(1), passed, blocking=blocking)[1], ExpiredError)


async def test_small_batches_do_not_change_the_token_rate(admission: Admission, scheduler: BatchScheduler) -> None:
    put(scheduler, 1000)
    for _ in range(100):
        admission.observe_batch(tokens=8, compute_s=0.5, backlog=False)
    assert admission.expected_wait_s() == pytest.approx(0.5)


async def test_long_texts_are_rejected_when_tokenizing_those_before_them_takes_too_long(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    put(scheduler, 10)
    # A million code points a second until a rate was observed, and at most 2 s of queue.
    long = [EstimatedSize(100, 400_000)] * 6
    flow = Flow()
    assert admission.admit(flow, long, None, blocking=False)[0] == 4
    _, rejection = admission.admit(flow, long[:1], None, blocking=False)
    assert isinstance(rejection, OverloadedError)
    # A short text does not wait for them, and a long one only for its own share of the time.
    assert admits(admission, 100, deadline_s=0.5)
    other = Flow()
    assert admission.admit(other, [EstimatedSize(100, 20_000)], time.monotonic() + 0.5, blocking=False)[0] == 1
    admission.release(other, [EstimatedSize(100, 20_000)])
    admission.release(flow, long[:4])
    for _ in range(100):
        admission.observe_tokenization(100_000, 1.0)
    assert admission.admit(flow, long, None, blocking=False)[0] == 0


async def test_first_rejected_changes_nothing(admission: Admission, scheduler: BatchScheduler) -> None:
    flow = Flow()
    put(scheduler, 9000, flow)
    before = scheduler.accounting.snapshot()
    index, rejection = admission.first_rejected(flow, sizes(500, 500, 500), 1e9, blocking=False)
    assert index == 2
    assert "10500 tokens would wait" in str(rejection)
    assert scheduler.accounting.snapshot() == before
    assert admission.first_rejected(Flow(), sizes(500, 500, 500), 1e9, blocking=True) == (3, None)
    assert admission.first_rejected(Flow(), [], 1e9, blocking=False) == (0, None)


async def test_wait_of_the_item_includes_a_batch(admission: Admission, scheduler: BatchScheduler) -> None:
    put(scheduler, 10)
    assert admits(admission, 2000, deadline_s=2.0)
    # From the first observation on, the duration of a batch counts as well: 2,000 tokens take 1 s, and 0.5 s more.
    admission.observe_batch(tokens=500, compute_s=0.5, backlog=False)
    assert not admits(admission, 2000, deadline_s=2.0)
    assert admits(admission, 2000, deadline_s=2.5)


def wait_s(admission: Admission, size: EstimatedSize) -> float:
    """Returns the wait that is expected for an item of a new call."""
    _, rejection = admission.first_rejected(Flow(), [size], 0, blocking=True)
    assert isinstance(rejection, OverloadedError)
    return rejection.retry_after_s


async def test_observed_rates_are_moving_averages(admission: Admission, scheduler: BatchScheduler) -> None:
    put(scheduler, 1000)
    assert wait_s(admission, EstimatedSize(1000, 0)) == pytest.approx(1.0)
    # Two workers with 500 tokens a second each, of which a tenth counts; the first duration of a batch counts whole.
    admission.observe_batch(tokens=500, compute_s=1.0, backlog=True)
    assert admission.tokens_per_s == pytest.approx(1900)
    assert wait_s(admission, EstimatedSize(900, 0)) == pytest.approx(1.0 + 1800 / 1900)
    admission.observe_batch(tokens=500, compute_s=2.0, backlog=True)
    assert admission.tokens_per_s == pytest.approx(1900 - 140)
    assert wait_s(admission, EstimatedSize(760, 0)) == pytest.approx(1.1 + 1520 / 1760)
    admission.observe_tokenization(1_000_000, 0.5)
    assert wait_s(admission, EstimatedSize(760, 1_100_000)) == pytest.approx(1.1 + 1520 / 1760 + 1.0)


async def test_first_batch_sets_an_unknown_rate(scheduler: BatchScheduler) -> None:
    admission = Admission(scheduler.accounting, 2, max_queue_s=2, max_queue_tokens=10_000, tokens_per_s=0)
    admission.observe_batch(tokens=500, compute_s=1.0, backlog=False)
    assert admission.tokens_per_s == 1000


async def test_second_item_is_not_free_when_the_first_one_has_the_size_of_the_queue(
    admission: Admission, scheduler: BatchScheduler
) -> None:
    put(scheduler, 1000)
    assert admission.first_rejected(Flow(), sizes(1000, 1000), 1.4, blocking=True)[0] == 1

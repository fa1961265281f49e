"""Equal texts in flight: computed once, with a deadline and a cancellation each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence

import pytest
from polyhead_server.errors import ExpiredError, InternalError
from polyhead_server.inference.admission import Admission
from polyhead_server.inference.equal_texts import key_of
from polyhead_server.inference.executor import BatchOutcome
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.scheduler import BatchScheduler
from polyhead_server.inference.types import Entry, Flow, OutcomeFuture, Result
from polyhead_server.settings import Settings

from tests.support import queue_entries
from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.submissions import WINDOW, embedding, message, outcomes


async def submit(pipeline: Pipeline, text: str, deadline: float | None = None) -> OutcomeFuture:
    (future,) = await pipeline.submit(message(text), Flow(unary=True), deadline)
    return future


@pytest.fixture
async def busy(pipeline: Pipeline, engine: FakeEngine) -> OutcomeFuture:
    """The text "w1", at whose computation the only thread is held."""
    engine.gate.clear()
    future = await submit(pipeline, "w1")
    await engine.hold()
    return future


def keyed(length: int, key: int, flow: Flow | None = None, deadline: float | None = None) -> Entry:
    one = queue_entries.entry(length, deadline, flow)
    one.key = key_of([key])
    return one


def duplicates(entries: Iterable[Entry]) -> int:
    """Returns the tokens of all waiting entries but the first of each key."""
    waiting = [entry for entry in entries if entry.waiting]
    return sum(entry.length for entry in waiting) - sum({entry.key: entry.length for entry in waiting}.values())


def nothing_left(scheduler: BatchScheduler) -> bool:
    snapshot = scheduler.snapshot()
    return snapshot.tokens == (0,) * len(snapshot.tokens) and snapshot.keys == 0


async def test_equal_texts_that_wait_are_computed_once(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    same = [await submit(pipeline, "w2 w3") for _ in range(5)]
    other = await submit(pipeline, "w3 w2")
    engine.gate.set()
    answers = await asyncio.gather(busy, *same, other)
    assert [embedding(answer) for answer in answers[1:6]] == [embedding_of("w2 w3")] * 5
    assert engine.batch_shapes == [(1, 3), (2, 4)]
    assert nothing_left(pipeline.scheduler)


async def test_text_that_comes_while_it_is_computed_is_answered_with_it(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    later = [await submit(pipeline, "w1") for _ in range(2)]
    assert pipeline.scheduler.accounting.waiting_items == 0
    engine.gate.set()
    for answer in await asyncio.gather(busy, *later):
        assert embedding(answer) == embedding_of("w1")
    assert engine.batch_shapes == [(1, 3)]
    # Without a cache, a finished computation answers nobody any more.
    await outcomes(pipeline, message("w1"))
    assert engine.batch_shapes == [(1, 3), (1, 3)]
    assert nothing_left(pipeline.scheduler)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_cancelling_one_call_leaves_the_others(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture, cancelled: int
) -> None:
    same = [await submit(pipeline, "w2") for _ in range(3)]
    same.pop(cancelled).cancel()
    engine.gate.set()
    answers = await asyncio.gather(busy, *same)
    assert [embedding(answer) for answer in answers[1:]] == [embedding_of("w2")] * 2
    assert nothing_left(pipeline.scheduler)


async def test_cancelling_the_computed_call_leaves_those_that_share_it(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    later = await submit(pipeline, "w1")
    busy.cancel()
    engine.gate.set()
    assert embedding(await later) == embedding_of("w1")
    assert engine.batch_shapes == [(1, 3)]


async def test_text_that_nobody_waits_for_is_not_computed(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    for future in [await submit(pipeline, "w2") for _ in range(3)]:
        future.cancel()
    engine.gate.set()
    await busy
    await outcomes(pipeline, message("w3 w4"))
    assert engine.batch_shapes == [(1, 3), (1, 4)]
    assert nothing_left(pipeline.scheduler)


@pytest.mark.parametrize("first_expires", [True, False])
async def test_each_call_has_its_own_deadline(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture, first_expires: bool
) -> None:
    soon = time.monotonic() + 0.05
    first, second = [
        await submit(pipeline, "w2", soon if expires else None) for expires in (first_expires, not first_expires)
    ]
    while time.monotonic() < soon:
        await asyncio.sleep(0.01)
    engine.gate.set()
    expired, answered = (first, second) if first_expires else (second, first)
    assert isinstance(await expired, ExpiredError)
    assert embedding(await answered) == embedding_of("w2")
    await busy
    assert nothing_left(pipeline.scheduler)


async def test_failure_is_shared_and_not_remembered(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    engine.error = RuntimeError("no")
    same = [await submit(pipeline, "poison") for _ in range(2)]
    engine.gate.set()
    assert all(isinstance(outcome, InternalError) for outcome in await asyncio.gather(*same))
    engine.error = None
    (answer,) = await outcomes(pipeline, message("poison"))
    assert isinstance(answer, Result)
    await busy


async def test_texts_with_equal_tokens_keep_their_own_truncation(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    # 16 tokens are read, of which two are special.
    long, whole = await submit(pipeline, "w1 " * 30), await submit(pipeline, "w1 " * 14)
    engine.gate.set()
    cut, complete = await long, await whole
    assert isinstance(cut, Result)
    assert isinstance(complete, Result)
    assert embedding(cut) == embedding(complete)
    assert (cut.tokens.seen, cut.tokens.cut_at) == (32, 42)
    assert (complete.tokens.seen, complete.tokens.cut_at) == (16, None)
    assert engine.batch_shapes == [(1, 3), (1, 16)]
    await busy


async def test_windows_of_equal_texts_are_computed_once(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    text = " ".join(f"w{number}" for number in range(20))
    pair = [(await pipeline.submit(message(text, options=WINDOW), Flow(), None))[0] for _ in range(2)]
    engine.gate.set()
    one, other = await asyncio.gather(*pair)
    assert embedding(one) == embedding(other)
    assert sum(size for size, _ in engine.batch_shapes) == 1 + 2
    await busy


async def test_timings_count_from_the_arrival_of_each_call(
    pipeline: Pipeline, engine: FakeEngine, busy: OutcomeFuture
) -> None:
    await asyncio.sleep(0.05)
    late = await submit(pipeline, "w1")
    engine.gate.set()
    first, shared = await busy, await late
    assert isinstance(first, Result)
    assert isinstance(shared, Result)
    assert first.timings.compute_ns - shared.timings.compute_ns >= 40_000_000
    assert shared.timings.queue_ns == 0
    assert shared.timings.admission_ns >= 0
    assert shared.timings.batch_items == 1


async def test_shared_texts_are_reported_with_their_batch(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    counts: list[tuple[int, int]] = []

    def observe(finished: Sequence[BatchOutcome]) -> None:
        counts.extend((len(done.batch.entries), done.batch.shared_items) for done in finished)

    pipeline = Pipeline(model, settings(), observe)
    pipeline.start()
    engine.gate.clear()
    first = await submit(pipeline, "w1")
    await engine.hold()
    rest = [await submit(pipeline, text) for text in ("w1", "w2", "w2", "w3")]
    engine.gate.set()
    await asyncio.gather(first, *rest)
    assert counts == [(1, 1), (2, 1)]
    await pipeline.close()


async def test_text_is_computed_when_its_most_urgent_call_is_served(scheduler: BatchScheduler) -> None:
    stream, unary = Flow(), Flow(unary=True)
    scheduler.put([keyed(number, number, stream) for number in range(20, 90, 5)])
    last = keyed(90, 1, stream)
    scheduler.put([last])
    urgent = keyed(90, 1, unary)
    scheduler.put([urgent])
    taken = [entry for _ in range(3) for entry in scheduler.poll(1).entries]
    assert urgent in taken
    assert last not in taken
    assert urgent.shared == [last]
    assert not last.waiting


async def test_equal_texts_take_no_place_in_a_batch(scheduler: BatchScheduler) -> None:
    scheduler.put([keyed(10, 0) for _ in range(9)])
    scheduler.put([keyed(10, number) for number in range(1, 12)])
    first, second = scheduler.poll(1).entries, scheduler.poll(1).entries
    assert (len(first), len(second)) == (10, 2)
    assert len({entry.key for entry in (*first, *second)}) == 12


async def test_queue_full_of_equal_texts_rejects_no_call_that_it_can_answer(
    scheduler: BatchScheduler, admission: Admission
) -> None:
    # At 2,000 tokens a second and at most 2 s, 6,000 tokens would be too many.
    scheduler.put([keyed(100, 1, Flow(unary=True)) for _ in range(60)])
    assert scheduler.accounting.waiting_tokens == 6000
    assert admission.expected_wait_s() == pytest.approx(0.05)
    assert queue_entries.admits(admission, 100, deadline_s=1.0)
    scheduler.put([keyed(100, number, Flow(unary=True)) for number in range(2, 45)])
    assert admission.expected_wait_s() == pytest.approx(2.2)
    assert not queue_entries.admits(admission, 100)


async def test_equal_texts_count_in_full_against_the_limit_of_the_queue(
    scheduler: BatchScheduler, admission: Admission
) -> None:
    flow = Flow(unary=True)
    scheduler.put([keyed(100, 1, flow) for _ in range(99)])
    assert queue_entries.admits(admission, 100, flow=flow)
    scheduler.put([keyed(100, 1, flow)])
    assert not queue_entries.admits(admission, 100, flow=flow)


async def test_text_that_shares_a_computation_is_not_charged(scheduler: BatchScheduler) -> None:
    first, second = Flow(), Flow()
    scheduler.put([keyed(10, 1, first), keyed(10, 1, second)])
    scheduler.poll(1)
    assert (first.virtual_finish, second.virtual_finish) == (10, 0)


class History:
    """Random operations on a scheduler, and what has become of each entry."""

    def __init__(self, scheduler: BatchScheduler, seed: int) -> None:
        self.everything: list[Entry] = []
        self.gone: dict[Entry, str] = {}
        self._scheduler = scheduler
        self._rng = random.Random(seed)
        self._flows = [Flow(unary=self._rng.random() < 0.5) for _ in range(4)]
        self._running: list[list[Entry]] = []

    def step(self) -> None:
        self._rng.choice([self._put, self._put, self._take, self._drop, self._finish])()

    def end(self) -> None:
        while self._scheduler.accounting.waiting_items:
            self._take()
        while self._running:
            self._finish()

    def _put(self) -> None:
        key, now = self._rng.randrange(6), time.monotonic()
        deadline = self._rng.choice([None, now - 1, now + 100])
        self.everything.append(keyed(5 + key % 3, key, self._rng.choice(self._flows), deadline))
        self._scheduler.put(self.everything[-1:])

    def _take(self) -> None:
        batch = self._scheduler.poll(1)
        self._running.append(batch.entries)
        self.gone |= dict.fromkeys(batch.expired, "expired")

    def _drop(self) -> None:
        if self.everything:
            entry = self._rng.choice(self.everything[-8:])
            entry.future.cancel()
            if entry.waiting:
                self.gone[entry] = "dropped"
            self._scheduler.drop(entry)

    def _finish(self) -> None:
        if self._running:
            batch = self._running.pop(self._rng.randrange(len(self._running)))
            self._scheduler.finish(batch)
            assert len({entry.key for entry in batch}) == len(batch)
            for entry in batch:
                for one in (entry, *(entry.shared or ())):
                    assert one.key == entry.key
                    assert one not in self.gone
                    self.gone[one] = "answered"


@pytest.mark.parametrize("seed", range(20))
async def test_every_entry_is_answered_once_or_expired_or_dropped(scheduler: BatchScheduler, seed: int) -> None:
    history = History(scheduler, seed)
    for _ in range(400):
        history.step()
        assert scheduler.accounting.duplicate_tokens == duplicates(history.everything)
    history.end()
    assert set(history.gone) == set(history.everything)
    assert set(history.gone.values()) == {"answered", "expired", "dropped"}
    assert nothing_left(scheduler)

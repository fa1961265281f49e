"""How the compute threads choose an engine, survive failures and report that no batch can succeed any more."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from polyhead_server.engines import EngineError
from polyhead_server.errors import ExpiredError, InternalError
from polyhead_server.inference import executor, scheduler
from polyhead_server.inference.executor import MAX_FAILED_BATCHES, MIN_EXCLUSIVE_BATCHES
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, Result
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, Panic, embedding_of
from tests.support.polling import until
from tests.support.submissions import FakeClock, embedding, message, outcomes


@pytest.fixture
def intra_op(model: Model) -> FakeEngine:
    """The model's engine on several cores."""
    return FakeEngine()


@pytest.fixture
async def two_engines(model: Model, intra_op: FakeEngine, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    """A pipeline with a second engine on several cores."""
    pipeline = Pipeline(dataclasses.replace(model, intra_op_engine=intra_op), settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()


async def test_batch_gets_all_cores_after_a_run_of_exclusive_batches(
    two_engines: Pipeline, engine: FakeEngine, intra_op: FakeEngine
) -> None:
    for number in range(MIN_EXCLUSIVE_BATCHES + 2):
        (answer,) = await outcomes(two_engines, message(f"w{number}"))
        assert embedding(answer) == embedding_of(f"w{number}")
    assert len(intra_op.batch_shapes) == 2
    assert len(engine.batch_shapes) == MIN_EXCLUSIVE_BATCHES


async def test_batch_beside_others_gets_one_core(
    two_engines: Pipeline, engine: FakeEngine, intra_op: FakeEngine
) -> None:
    for number in range(MIN_EXCLUSIVE_BATCHES):
        await outcomes(two_engines, message(f"w{number}"))
    intra_op.gate.clear()
    first = await two_engines.submit(message("w1"), Flow(), None)
    await intra_op.hold()
    rest = [await two_engines.submit(message(text), Flow(), None) for text in ("w2", " ".join(["w3"] * 9))]
    intra_op.gate.set()
    await asyncio.gather(*first, *(future for futures in rest for future in futures))
    assert len(intra_op.batch_shapes) == 1
    assert len(engine.batch_shapes) == MIN_EXCLUSIVE_BATCHES + 2


async def test_batch_that_runs_beside_another_is_not_exclusive(
    model: Model,
    engine: FakeEngine,
    intra_op: FakeEngine,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Pipeline(dataclasses.replace(model, intra_op_engine=intra_op), settings(threads=2))
    pipeline.start()
    engine.gate.clear()
    # None of the texts below: equal ones would share its computation.
    first = await pipeline.submit(message("w100"), Flow(), None)
    await engine.hold()
    # The second thread computes these while the first one is held.
    monkeypatch.setattr(engine, "run", FakeEngine().run)
    for number in range(MIN_EXCLUSIVE_BATCHES + 2):
        await outcomes(pipeline, message(f"w{number}"))
    engine.gate.set()
    assert isinstance(await first[0], Result)
    assert intra_op.batch_shapes == []
    await pipeline.close()


async def test_batch_of_expired_entries_does_not_count_as_exclusive(
    two_engines: Pipeline, engine: FakeEngine, intra_op: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(MIN_EXCLUSIVE_BATCHES - 1):
        await outcomes(two_engines, message("w1"))
    with monkeypatch.context() as later:
        later.setattr(scheduler, "time", FakeClock(time.monotonic() + 2000))
        for _ in range(3):
            (expired,) = await outcomes(two_engines, message("w1"), time.monotonic() + 1000)
            assert isinstance(expired, ExpiredError)
    await outcomes(two_engines, message("w1"))
    assert (len(engine.batch_shapes), len(intra_op.batch_shapes)) == (MIN_EXCLUSIVE_BATCHES, 0)
    await outcomes(two_engines, message("w1"))
    assert len(intra_op.batch_shapes) == 1


async def test_batch_that_fails_on_all_cores_is_computed_again_on_one(
    two_engines: Pipeline, engine: FakeEngine, intra_op: FakeEngine
) -> None:
    intra_op.error = RuntimeError("broken")
    for number in range(MIN_EXCLUSIVE_BATCHES):
        await outcomes(two_engines, message(f"w{number}"))
    (answer,) = await outcomes(two_engines, message("poison"))
    assert isinstance(answer, Result)
    assert len(intra_op.batch_shapes) == 1
    assert len(engine.batch_shapes) == MIN_EXCLUSIVE_BATCHES + 1
    # The run of exclusive batches starts anew.
    await outcomes(two_engines, message("w1"))
    assert len(intra_op.batch_shapes) == 1


async def test_engine_that_loses_a_row_fails_its_batch_and_the_next_batch_works(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda ids, mask: [values[1:] for values in run(ids, mask)])
    (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)
    monkeypatch.setattr(engine, "run", run)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_row_that_is_not_finite_fails_its_item_alone(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run
    bad_row = np.array([[np.nan], [1.0]], dtype=np.float32)
    monkeypatch.setattr(engine, "run", lambda ids, mask: [values * bad_row for values in run(ids, mask)])
    bad, good = await outcomes(pipeline, message("w1", "w2"))
    assert isinstance(bad, InternalError)
    assert embedding(good) == embedding_of("w2")


@pytest.mark.parametrize("failure", [RuntimeError("secret"), Panic("secret")])
async def test_failing_batch_answers_its_items_and_the_next_batch_works(
    pipeline: Pipeline, engine: FakeEngine, failure: BaseException
) -> None:
    engine.error = failure
    (bad,) = await outcomes(pipeline, message("poison"))
    assert isinstance(bad, InternalError)
    assert "secret" not in str(bad)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_text_that_fails_a_batch_fails_no_other_text(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.error = RuntimeError("broken")
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    rest = await pipeline.submit(message("w2", "poison", "w3"), Flow(), None)
    engine.gate.set()
    await asyncio.gather(*first, *rest)
    good, bad, other = (future.result() for future in rest)
    assert isinstance(bad, InternalError)
    assert [embedding(good), embedding(other)] == [embedding_of("w2"), embedding_of("w3")]
    assert engine.batch_shapes[1:] == [(3, 3), (1, 3), (1, 3), (1, 3)]


async def test_engine_that_fails_for_good_is_found(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[BaseException] = []
    pipeline = Pipeline(model, settings(), on_exception=caught.append)
    pipeline.start()
    probes = 0

    def self_test(*_: object) -> None:
        nonlocal probes
        probes += 1
        if probes > 1:
            raise EngineError("it answers golden texts wrongly")

    monkeypatch.setattr(executor, "self_test", self_test)
    rate = pipeline.admission.tokens_per_s
    engine.error = RuntimeError("sticky")
    for number in range(2 * MAX_FAILED_BATCHES):
        await outcomes(pipeline, message("poison"))
        # Texts that the engine cannot compute are no failure, as long as it computes the golden ones.
        assert pipeline.failure_reason() is None or number == 2 * MAX_FAILED_BATCHES - 1
    while pipeline.failure_reason() is None:
        await asyncio.sleep(0)
    assert "20 batches in a row failed" in str(pipeline.failure_reason())
    assert probes == 2
    assert [type(error) for error in caught] == [RuntimeError] * 2 * MAX_FAILED_BATCHES + [EngineError]
    # Failed batches do not change the token rate.
    assert pipeline.admission.tokens_per_s == rate
    await pipeline.close()


async def test_successful_batch_ends_a_run_of_failures(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = threading.Event()
    monkeypatch.setattr(executor, "self_test", lambda *_: probed.set())
    engine.error = RuntimeError("sticky")
    for texts in (["poison"] * (MAX_FAILED_BATCHES - 1), ["w1"], ["poison"] * (MAX_FAILED_BATCHES - 1), ["w1"]):
        for text in texts:
            await outcomes(pipeline, message(text))
    assert not probed.is_set()


async def test_batch_that_hangs_is_found(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(model, settings(batch_timeout_s=100))
    pipeline.start()
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    assert pipeline.failure_reason() is None
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 101 * 10**9)
    assert "a batch has been running for 101 s" in str(pipeline.failure_reason())
    monkeypatch.undo()
    engine.gate.set()
    await running[0]
    await pipeline.close()
    # An idle thread is not a hung one.
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 10**13)
    assert pipeline.failure_reason() is None


async def test_probe_that_hangs_is_found(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed, release = threading.Event(), threading.Event()

    def self_test(*_: object) -> None:
        probed.set()
        assert release.wait(30)

    monkeypatch.setattr(executor, "self_test", self_test)
    pipeline = Pipeline(model, settings(batch_timeout_s=100))
    pipeline.start()
    engine.error = RuntimeError("sticky")
    for _ in range(MAX_FAILED_BATCHES):
        await outcomes(pipeline, message("poison"))
    assert await asyncio.to_thread(probed.wait, 30)
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 101 * 10**9)
    assert "a batch has been running for 101 s" in str(pipeline.failure_reason())
    monkeypatch.undo()
    release.set()
    await pipeline.close()


async def test_compute_thread_that_ends_is_found(
    model: Model, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take() -> None:
        raise IndexError

    caught: list[BaseException] = []
    pipeline = Pipeline(model, settings(), on_exception=caught.append)
    monkeypatch.setattr(pipeline.scheduler, "take", take)
    pipeline.start()
    await pipeline.close()
    assert pipeline.failure_reason() == "a compute thread ended: IndexError"
    assert [type(error) for error in caught] == [IndexError]


async def test_exception_hook_sees_a_failure_before_its_item_is_answered(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    caught: list[tuple[BaseException, str]] = []
    pipeline = Pipeline(
        model, settings(), on_exception=lambda error: caught.append((error, threading.current_thread().name))
    )
    pipeline.start()
    engine.error = MemoryError()
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    rest = await pipeline.submit(message("w2", "poison"), Flow(), None)
    engine.gate.set()
    await asyncio.gather(*first, *rest)
    # Once, for the text by itself: a whole batch may fail for its size alone.
    assert caught == [(engine.error, "compute-0")]
    await pipeline.close()


async def test_messages_of_one_iteration_of_the_event_loop_share_a_batch(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(threads=1))
    pipeline.start()
    await outcomes(pipeline, message("w0"))
    # Until it sleeps, the thread takes what there is when it looks for work.
    await until(lambda: pipeline.scheduler.snapshot().idle_workers == 1)
    # Nothing here yields to the event loop.
    futures = [future for text in ("w1", "w2", "w3") for future in await pipeline.submit(message(text), Flow(), None)]
    await asyncio.gather(*futures)
    assert engine.batch_shapes == [(1, 3), (3, 3)]
    await pipeline.close()


async def test_batches_that_finish_while_the_event_loop_is_busy_are_delivered_together(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    deliveries: list[int] = []
    pipeline = Pipeline(model, settings(threads=1), lambda finished: deliveries.append(len(finished)))
    pipeline.start()
    engine.gate.clear()
    # Their lengths are too different for one batch.
    futures = [
        future
        for count in (1, 4, 12)
        for future in await pipeline.submit(message(" ".join(["w1"] * count)), Flow(), None)
    ]
    await engine.hold()
    engine.gate.set()
    deadline = time.monotonic() + 30
    while len(engine.batch_shapes) < 3:
        assert time.monotonic() < deadline
    # The thread hands a batch over before it computes the next one.
    await asyncio.gather(*futures)
    assert deliveries in ([3], [2, 1])
    await pipeline.close()


async def test_batch_of_expired_items_only_is_not_reported(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    pipeline = Pipeline(
        model, settings(threads=1), lambda finished: sizes.extend(len(done.batch.entries) for done in finished)
    )
    pipeline.start()
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    late = await pipeline.submit(message("w2"), Flow(), time.monotonic() + 1000)
    monkeypatch.setattr(scheduler, "time", FakeClock(time.monotonic() + 2000))
    engine.gate.set()
    _, expired = await asyncio.gather(*first, *late)
    assert isinstance(expired, ExpiredError)
    assert sizes == [1]
    await pipeline.close()

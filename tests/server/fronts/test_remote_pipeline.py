from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest
from polyhead_server.errors import (
    ExpiredError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    TextTooLongError,
)
from polyhead_server.fronts import records
from polyhead_server.fronts.remote_pipeline import RemotePipeline
from polyhead_server.inference import scheduler
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import (
    Flow,
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    OutcomeFuture,
    RequestOptions,
    Result,
    Truncation,
)
from polyhead_server.settings import Settings

from tests.support.fake_engine import embedding_of
from tests.support.front_processes import TIMEOUT_S, EngineProcess, Front
from tests.support.polling import until
from tests.support.submissions import WINDOW, FakeClock, embedding, message

from .conftest import MakeModel, StartEngine, StartFront

pytestmark = pytest.mark.timeout(60)


async def answered(futures: list[OutcomeFuture]) -> list[ItemOutcome]:
    return await asyncio.wait_for(asyncio.gather(*futures), TIMEOUT_S)


async def unary(pipeline: RemotePipeline, *texts: str, deadline: float | None = None) -> list[ItemOutcome]:
    return await answered(await pipeline.submit(message(*texts), Flow(unary=True), deadline))


@pytest.fixture
async def pair(new_engine: StartEngine, new_front: StartFront, make_model: MakeModel) -> tuple[EngineProcess, Front]:
    engine, front = new_engine(), new_front()
    await engine.start(make_model())
    await front.serving()
    return engine, front


async def test_answers_are_those_of_one_process(
    pair: tuple[EngineProcess, Front], make_model: MakeModel, settings: Callable[..., Settings]
) -> None:
    _, front = pair
    local = Pipeline(make_model("local"), settings())
    local.start()
    texts = ["w1", "w2 w3", "", "w1 w2 " * 20]
    for options in (RequestOptions(), WINDOW, RequestOptions(prompt="")):
        request = Message(tuple(Item(text, text) for text in texts), options)
        expected = await answered(await local.submit(request, Flow(unary=True), None))
        found = await answered(await front.pipeline.submit(request, Flow(unary=True), None))
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one, Result)
            assert isinstance(other, Result)
            assert one.tokens == other.tokens
            np.testing.assert_array_equal(one.output.embedding, other.output.embedding)
            for ours, theirs in zip(
                (*one.output.logits, *one.output.probabilities),
                (*other.output.logits, *other.output.probabilities),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, theirs)
    await local.close()


async def test_timings_add_up_across_the_processes(pair: tuple[EngineProcess, Front]) -> None:
    before_ns = time.monotonic_ns()
    (outcome,) = await unary(pair[1].pipeline, "w1 w2")
    assert isinstance(outcome, Result)
    timings = outcome.timings
    assert min(timings.tokenization_ns, timings.queue_ns, timings.compute_ns, timings.admission_ns) >= 0
    assert 0 < timings.total_ns < time.monotonic_ns() - before_ns
    assert (timings.batch_items, timings.batch_tokens) == (1, 4)


async def test_items_have_outcomes_of_their_own(pair: tuple[EngineProcess, Front]) -> None:
    engine, front = pair
    engine.engine.error = RuntimeError("poisoned")
    bad = InvalidItem("bad", InvalidRequestError("TEXT_NOT_UTF8", "not UTF-8"))
    request = Message(
        (Item("1", "w1"), bad, Item("2", "poison"), Item("3", "w2 " * 100)), RequestOptions(truncation=Truncation.ERROR)
    )
    first, second, third, fourth = await answered(await front.pipeline.submit(request, Flow(unary=True), None))
    assert embedding(first) == embedding_of("w1")
    assert second is bad.error
    assert isinstance(third, InternalError)
    assert len(third.incident) == 12
    assert isinstance(fourth, TextTooLongError)


async def test_equal_texts_of_two_fronts_are_computed_once(
    pair: tuple[EngineProcess, Front], new_front: StartFront
) -> None:
    engine, front = pair
    other = new_front()
    await other.serving()
    engine.engine.gate.clear()
    blocker = await front.pipeline.submit(message("w9"), Flow(unary=True), None)
    await engine.engine.hold()
    twins = [await one.pipeline.submit(message("w1 w2"), Flow(unary=True), None) for one in (front, other)]
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 2)
    engine.engine.gate.set()
    for futures in (blocker, *twins):
        await answered(futures)
    assert engine.engine.batch_shapes == [(1, 3), (1, 4)]
    assert all(embedding(futures[0].result()) == embedding_of("w1 w2") for futures in twins)


async def test_a_text_of_one_front_does_not_wait_behind_a_stream_of_another(
    pair: tuple[EngineProcess, Front], new_front: StartFront
) -> None:
    engine, front = pair
    other = new_front()
    await other.serving()
    engine.engine.gate.clear()
    flow = Flow()
    stream = await front.pipeline.submit(message("w9"), flow, None, blocking=True)
    await engine.engine.hold()
    # Texts of lengths that share no batch with the single one.
    for number in range(10):
        request = message(*(f"w{number} " * 40 + f"w{item}" for item in range(20)))
        stream += await front.pipeline.submit(request, flow, None, blocking=True)
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 200)
    single = await other.pipeline.submit(message("w1 w2"), Flow(unary=True), None)
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 201)
    engine.engine.gate.set()
    await answered(stream + single)
    # The batch that was held, at most one that was taken meanwhile, and then the single text.
    assert (1, 4) in engine.engine.batch_shapes[:3]
    assert len(engine.engine.batch_shapes) > 10


async def test_a_unary_call_is_refused_by_the_queue_of_all_fronts(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front, other = new_engine(max_queue_tokens=40), new_front(max_queue_tokens=40), new_front()
    await engine.start(make_model())
    await front.serving()
    await other.serving()
    engine.engine.gate.clear()
    blocker = await front.pipeline.submit(message("w9"), Flow(unary=True), None)
    await engine.engine.hold()
    waiting = await front.pipeline.submit(message(*[f"w{n} w1 w2 w3" for n in range(7)]), Flow(unary=True), None)
    await until(lambda: engine.core.scheduler.accounting.waiting_tokens == 42)
    flow = Flow(unary=True)
    refused = await answered(await other.pipeline.submit(message(*["w1 w2 w3 w4"] * 6), flow, None))
    assert all(isinstance(outcome, OverloadedError) for outcome in refused)
    assert "the limit is 40" in str(refused[0])
    engine.engine.gate.set()
    assert all(isinstance(outcome, Result) for outcome in await answered(blocker + waiting))
    assert isinstance((await unary(other.pipeline, "w1"))[0], Result)
    assert engine.core.scheduler.accounting.snapshot()[:6] == (0,) * 6


async def test_a_deadline_that_passes_in_the_queue_is_an_error(
    pair: tuple[EngineProcess, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, front = pair
    engine.engine.gate.clear()
    blocker = await front.pipeline.submit(message("w9"), Flow(unary=True), None)
    await engine.engine.hold()
    late = await front.pipeline.submit(message("w1"), Flow(unary=True), time.monotonic() + 1000)
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 1)
    with monkeypatch.context() as later:
        later.setattr(scheduler, "time", FakeClock(time.monotonic() + 2000))
        engine.engine.gate.set()
        (outcome,) = await answered(late)
    assert isinstance(outcome, ExpiredError)
    await answered(blocker)
    assert len(engine.engine.batch_shapes) == 1
    (outcome,) = await unary(front.pipeline, "w1", deadline=time.monotonic() - 1)
    assert isinstance(outcome, ExpiredError)


@pytest.mark.parametrize("deadline", [2.0**63 / 1e6, 1e300, float("inf")])
async def test_a_deadline_beyond_64_bits_of_nanoseconds_is_none(
    pair: tuple[EngineProcess, Front], deadline: float
) -> None:
    (outcome,) = await unary(pair[1].pipeline, "w1", deadline=deadline)
    assert isinstance(outcome, Result)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_message_that_cannot_be_sent_leaves_no_reservation(
    pair: tuple[EngineProcess, Front], monkeypatch: pytest.MonkeyPatch, *, blocking: bool
) -> None:
    _, front = pair

    def fail(*_: object) -> bytes:
        raise RuntimeError("cannot be encoded")

    with monkeypatch.context() as broken:
        broken.setattr(records, "admit", fail)
        with pytest.raises(RuntimeError):
            await front.pipeline.submit(message("w1"), Flow(unary=not blocking), None, blocking=blocking)
    assert isinstance((await unary(front.pipeline, "w2"))[0], Result)
    assert front.pipeline.target.messages == 0
    await asyncio.wait_for(front.pipeline.close(), TIMEOUT_S)


async def test_a_cancelled_text_leaves_the_queue(pair: tuple[EngineProcess, Front]) -> None:
    engine, front = pair
    engine.engine.gate.clear()
    blocker = await front.pipeline.submit(message("w9"), Flow(unary=True), None)
    await engine.engine.hold()
    futures = await front.pipeline.submit(message("w1", "w2"), Flow(unary=True), None)
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 2)
    for future in futures:
        future.cancel()
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 0)
    engine.engine.gate.set()
    await answered(blocker)
    await asyncio.wait_for(front.pipeline.close(), TIMEOUT_S)


async def test_a_stream_waits_for_the_capacity_of_the_engine(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(max_queue_tokens=40), new_front()
    await engine.start(make_model())
    pipeline = await front.serving()
    engine.engine.gate.clear()
    flow = Flow()
    futures = await pipeline.submit(message("w9"), flow, None, blocking=True)
    await engine.engine.hold()
    # Half of the queue, 20 tokens, is for streams; 5 tokens are estimated for each text.
    some = await pipeline.submit(message(*[f"w{n} w1 w2" for n in range(10)]), flow, None, blocking=True)
    assert 2 <= len(some) <= 5
    assert await pipeline.submit(message("w1 w2"), flow, None, blocking=True) == []
    waiting = asyncio.ensure_future(pipeline.wait_for_capacity(flow))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    engine.engine.gate.set()
    await asyncio.wait_for(waiting, TIMEOUT_S)
    more = await pipeline.submit(message("w1 w2"), flow, None, blocking=True)
    assert len(more) == 1
    await answered([*futures, *some, *more])


async def test_a_stream_that_has_ended_leaves_nothing_in_the_engine(pair: tuple[EngineProcess, Front]) -> None:
    engine, front = pair
    (connection,) = engine.host.connections
    flow = Flow()
    await answered(await front.pipeline.submit(message("w1"), flow, None, blocking=True))
    assert connection.counts() == (0, 0, 1)
    del flow
    await until(lambda: connection.counts() == (0, 0, 0))


async def test_a_call_cancelled_while_it_waits_for_admission_leaves_no_reservation(
    pair: tuple[EngineProcess, Front],
) -> None:
    engine, front = pair
    task = asyncio.create_task(front.pipeline.submit(message("w1", "w2"), Flow(), None, blocking=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance((await unary(front.pipeline, "w3"))[0], Result)
    accounting = engine.core.scheduler.accounting
    await until(lambda: accounting.snapshot()[:6] == (0,) * 6)
    (connection,) = engine.host.connections
    await until(lambda: connection.counts()[:2] == (0, 0))
    await asyncio.wait_for(front.pipeline.close(), TIMEOUT_S)


async def test_many_messages_at_once_are_all_answered(pair: tuple[EngineProcess, Front]) -> None:
    _, front = pair
    texts = [f"w{one} w{other}" for one in range(60) for other in range(60)]

    async def call(part: list[str]) -> list[ItemOutcome]:
        return await unary(front.pipeline, *part)

    outcomes = await asyncio.gather(*(call(texts[begin : begin + 100]) for begin in range(0, len(texts), 100)))
    found = [embedding(one) for part in outcomes for one in part]
    assert found == [embedding_of(text) for text in texts]

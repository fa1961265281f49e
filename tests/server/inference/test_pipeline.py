from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from polyhead_server.errors import ExpiredError, InternalError, InvalidRequestError, OverloadedError, TextTooLongError
from polyhead_server.inference import scheduler
from polyhead_server.inference.executor import BatchOutcome
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import OffloadedTexts, Placement
from polyhead_server.inference.types import (
    Flow,
    InvalidItem,
    Item,
    Message,
    RequestOptions,
    Result,
    TokenizedText,
    Truncation,
)
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, Panic, embedding_of
from tests.support.submissions import FakeClock, embedding, message, outcomes


async def test_every_text_gets_its_own_answer(pipeline: Pipeline) -> None:
    texts = [" ".join(f"w{(start + step) % 200}" for step in range(start % 9)) for start in range(40)]
    answers = await outcomes(pipeline, message(*texts))
    assert [embedding(answer) for answer in answers] == [embedding_of(text) for text in texts]


async def test_waiting_items_of_many_messages_share_a_batch(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    rest = [await pipeline.submit(message(f"w{number}"), Flow(), None) for number in range(2, 7)]
    engine.gate.set()
    await asyncio.gather(*first, *(future for futures in rest for future in futures))
    assert engine.batch_shapes == [(1, 3), (5, 3)]


async def test_invalid_item_is_answered_with_its_error(pipeline: Pipeline) -> None:
    error = InvalidRequestError("TEXT_NOT_UTF8", "no")
    mixed = Message((InvalidItem("x", error), Item("y", "w1")), RequestOptions())
    bad, good = await outcomes(pipeline, mixed)
    assert bad is error
    assert embedding(good) == embedding_of("w1")


async def test_long_text_is_refused_only_under_the_error_policy(pipeline: Pipeline) -> None:
    texts = ("w1", "w1 " * 30)
    good, refused = await outcomes(pipeline, message(*texts, options=RequestOptions(truncation=Truncation.ERROR)))
    assert embedding(good) == embedding_of("w1")
    assert isinstance(refused, TextTooLongError)
    assert all(isinstance(answer, Result) for answer in await outcomes(pipeline, message(*texts)))


async def test_expired_item_is_answered_and_not_computed(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    waiting = await pipeline.submit(message("w2"), Flow(), time.monotonic() + 1000)
    monkeypatch.setattr(scheduler, "time", FakeClock(time.monotonic() + 2000))
    engine.gate.set()
    assert isinstance(await waiting[0], ExpiredError)
    assert isinstance(await running[0], Result)
    assert engine.batch_shapes == [(1, 3)]


async def test_cancelled_item_is_not_computed(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (waiting,) = await pipeline.submit(message("w2"), Flow(), None)
    (kept,) = await pipeline.submit(message("w3"), Flow(), None)
    waiting.cancel()
    engine.gate.set()
    assert embedding(await kept) == embedding_of("w3")
    await running[0]
    assert engine.batch_shapes == [(1, 3), (1, 3)]


async def test_item_cancelled_while_it_is_computed_does_not_affect_its_batch_mates(
    pipeline: Pipeline, engine: FakeEngine
) -> None:
    engine.gate.clear()
    cancelled, kept = await pipeline.submit(message("w1", "w2"), Flow(), None)
    await engine.hold()
    cancelled.cancel()
    engine.gate.set()
    assert embedding(await asyncio.wait_for(kept, 30)) == embedding_of("w2")
    assert engine.batch_shapes == [(2, 3)]


async def test_rate_of_offloaded_tokenization_is_observed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[tuple[int, float]] = []
    monkeypatch.setattr(pipeline.admission, "observe_tokenization", lambda *values: observed.append(values))
    await outcomes(pipeline, message("w1", "w2"))
    assert observed == []
    await outcomes(pipeline, message("w1 " * 200, "w2"))
    ((characters, seconds),) = observed
    assert characters == 602
    assert 0 < seconds < 30


async def test_stream_that_waits_for_capacity_is_woken_when_the_queue_is_cancelled(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_s=0.0))
    pipeline.start()
    await outcomes(pipeline, message("w1"))
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None, blocking=True)
    await engine.hold()
    stream = Flow()
    waiting = await pipeline.submit(message("w2"), stream, None, blocking=True)
    capacity = asyncio.ensure_future(pipeline.admission.wait_for_capacity(stream))
    await asyncio.sleep(0)
    assert not capacity.done()
    for future in [*running, *waiting]:
        future.cancel()
    engine.gate.set()
    await asyncio.wait_for(capacity, 30)
    await pipeline.close()


async def test_stream_that_waits_for_capacity_is_woken_when_its_batch_is_done(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_s=0.0))
    pipeline.start()
    await outcomes(pipeline, message("w1"))
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None, blocking=True)
    await engine.hold()
    stream = Flow()
    waiting = await pipeline.submit(message("w2"), stream, None, blocking=True)
    capacity = asyncio.ensure_future(pipeline.admission.wait_for_capacity(stream))
    await asyncio.sleep(0)
    assert not capacity.done()
    engine.gate.set()
    await asyncio.wait_for(capacity, 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*running, *waiting))
    await pipeline.close()


async def test_failing_tokenizer_answers_its_items(
    model: Model, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object) -> list[TokenizedText]:
        raise Panic

    caught: list[BaseException] = []
    pipeline = Pipeline(model, settings(), on_exception=caught.append)
    pipeline.start()
    with monkeypatch.context() as broken:
        broken.setattr(model.tokenizer, "encode", encode)
        (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)
    assert [type(error) for error in caught] == [Panic]
    assert pipeline.scheduler.accounting.snapshot()[:6] == (0,) * 6
    await pipeline.close()


async def test_timings_add_up(pipeline: Pipeline) -> None:
    (answer,) = await outcomes(pipeline, message("w1"))
    assert isinstance(answer, Result)
    timings = answer.timings
    assert timings.total_ns >= timings.tokenization_ns + timings.queue_ns + timings.compute_ns
    assert 0 <= timings.admission_ns < 10**9
    assert (timings.batch_items, timings.batch_tokens) == (1, 3)


async def test_wait_for_capacity_is_part_of_the_timings(pipeline: Pipeline) -> None:
    arrived_ns = time.monotonic_ns() - 5 * 10**9
    (future,) = await pipeline.submit(message("w1"), Flow(), None, blocking=True, arrived_ns=arrived_ns)
    answer = await future
    assert isinstance(answer, Result)
    assert 5 * 10**9 <= answer.timings.admission_ns < answer.timings.total_ns


async def test_closing_waits_for_texts_that_are_being_tokenized(
    model: Model, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    submitting = asyncio.ensure_future(pipeline.submit(message(*["w1 " * 200] * 300), Flow(), None))
    await asyncio.sleep(0)
    await asyncio.wait_for(pipeline.close(), 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*await submitting))


async def test_long_texts_enter_the_queue_chunk_by_chunk(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings())
    engine.gate.clear()
    submitting = asyncio.ensure_future(pipeline.submit(message(*["w1 " * 200] * 2000), Flow(), None))
    while not pipeline.scheduler.accounting.waiting_items:
        await asyncio.sleep(0)
    assert not submitting.done()
    assert pipeline.admission.expected_wait_s() == 0
    short = await pipeline.submit(message("w2"), Flow(), None)
    engine.gate.set()
    pipeline.start()
    assert embedding(await short[0]) == embedding_of("w2")
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*await submitting))
    assert pipeline.scheduler.accounting.snapshot()[:6] == (0,) * 6
    await pipeline.close()


async def test_items_beyond_the_deadline_are_rejected_and_the_rest_answered(pipeline: Pipeline) -> None:
    for _ in range(200):
        pipeline.admission.observe_batch(tokens=1, compute_s=0.2, backlog=True)
    # 5 tokens a second: of 50 texts with 2 tokens each, 32 are expected within 0.65 of 20 seconds, less a batch.
    answers = await outcomes(pipeline, message(*["w1"] * 50), time.monotonic() + 20)
    rejected = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 16 <= len(rejected) <= 20
    assert answers[-len(rejected) :] == rejected
    assert all(isinstance(answer, Result) for answer in answers[: -len(rejected)])


async def test_message_cancelled_while_it_is_submitted_leaves_nothing_behind(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    (running,) = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    encode, entered = pipeline.model.tokenizer.encode_async, asyncio.Event()

    async def first_chunk_only(texts: list[str], placement: Placement, flow: Flow, *limits: int) -> OffloadedTexts:
        if len(texts) == 2:
            return await encode(texts, placement, flow, *limits)
        entered.set()
        never: asyncio.Future[OffloadedTexts] = asyncio.get_running_loop().create_future()
        return await never

    monkeypatch.setattr(pipeline.model.tokenizer, "encode_async", first_chunk_only)
    monkeypatch.setattr(pipeline.model.tokenizer, "chunks", lambda texts: [slice(0, 2), slice(2, len(texts))])
    submitting = asyncio.create_task(pipeline.submit(message("w2", "w3", "w4"), Flow(), None))
    await entered.wait()
    assert pipeline.scheduler.accounting.snapshot()[:5] == (2, 6, 0, 1, 2)
    submitting.cancel()
    await asyncio.wait({submitting})
    await asyncio.sleep(0)
    assert pipeline.scheduler.accounting.snapshot()[:6] == (0,) * 6
    engine.gate.set()
    assert isinstance(await running, Result)


async def test_batches_and_messages_are_reported(model: Model, settings: Callable[..., Settings]) -> None:
    batches: list[BatchOutcome] = []
    messages: list[tuple[Model, int, int, bool]] = []
    pipeline = Pipeline(
        model,
        settings(),
        batches.extend,
        lambda by, arrived_ns, futures, stream: messages.append((by, arrived_ns, len(futures), stream)),
    )
    pipeline.start()
    await asyncio.gather(*await pipeline.submit(message("w1 w2"), Flow(), None, blocking=True, arrived_ns=7))
    assert [done.batch.tokens for done in batches] == [4]
    assert 0 < batches[0].compute_s < 10
    assert messages == [(model, 7, 1, True)]
    await pipeline.close()

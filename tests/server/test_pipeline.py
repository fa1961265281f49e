from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import tokenizers
from polyhead_server import batching
from polyhead_server.batching import Call
from polyhead_server.errors import ExpiredError, InternalError, InvalidRequestError, OverloadedError, TextTooLongError
from polyhead_server.items import BadItem, Item, Message, Outcome, Result, Truncation, Wishes
from polyhead_server.loading import Model
from polyhead_server.pipeline import Pipeline
from polyhead_server.settings import Settings

from .conftest import FakeEngine, embedding_of


@pytest.fixture
async def pipeline(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()


def message(*texts: str, wishes: Wishes | None = None) -> Message:
    return Message(tuple(Item(text, text) for text in texts), wishes or Wishes())


async def outcomes(pipeline: Pipeline, message: Message, deadline: float | None = None) -> list[Outcome]:
    return await asyncio.wait_for(asyncio.gather(*await pipeline.submit(message, Call(), deadline)), 30)


def embedding(outcome: Outcome) -> list[float]:
    assert isinstance(outcome, Result)
    return [float(value) for value in outcome.numbers.embedding]


async def test_every_text_gets_its_own_answer(pipeline: Pipeline) -> None:
    texts = [" ".join(f"w{(start + step) % 200}" for step in range(start % 9)) for start in range(40)]
    answers = await outcomes(pipeline, message(*texts))
    assert [embedding(answer) for answer in answers] == [embedding_of(text) for text in texts]


async def test_waiting_items_of_many_messages_share_a_pass(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = await pipeline.submit(message("w1"), Call(), None)
    await engine.hold()
    rest = [await pipeline.submit(message("w2"), Call(), None) for _ in range(5)]
    engine.gate.set()
    await asyncio.gather(*first, *(future for futures in rest for future in futures))
    assert engine.passes == [(1, 3), (5, 3)]


async def test_unreadable_item_is_answered_with_its_error(pipeline: Pipeline) -> None:
    error = InvalidRequestError("TEXT_NOT_UTF8", "no")
    mixed = Message((BadItem("x", error), Item("y", "w1")), Wishes())
    bad, good = await outcomes(pipeline, mixed)
    assert bad is error
    assert embedding(good) == embedding_of("w1")


async def test_long_text_is_refused_only_when_asked(pipeline: Pipeline) -> None:
    texts = ("w1", "w1 " * 30)
    good, refused = await outcomes(pipeline, message(*texts, wishes=Wishes(truncation=Truncation.ERROR)))
    assert embedding(good) == embedding_of("w1")
    assert isinstance(refused, TextTooLongError)
    assert all(isinstance(answer, Result) for answer in await outcomes(pipeline, message(*texts)))


async def test_expired_item_is_answered_and_not_computed(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Call(), None)
    await engine.hold()
    waiting = await pipeline.submit(message("w2"), Call(), time.monotonic() + 1000)
    monkeypatch.setattr(batching, "time", FakeClock(time.monotonic() + 2000))
    engine.gate.set()
    assert isinstance(await waiting[0], ExpiredError)
    assert isinstance(await running[0], Result)
    assert engine.passes == [(1, 3)]


class FakeClock:
    """Stands in the place of ``time``."""

    def __init__(self, now: float) -> None:
        self.monotonic = lambda: now


async def test_cancelled_item_is_not_computed(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Call(), None)
    await engine.hold()
    (waiting,) = await pipeline.submit(message("w2"), Call(), None)
    (kept,) = await pipeline.submit(message("w3"), Call(), None)
    waiting.cancel()
    engine.gate.set()
    assert embedding(await kept) == embedding_of("w3")
    await running[0]
    assert engine.passes == [(1, 3), (1, 3)]


class Panic(BaseException):
    """Like a Rust panic: no Exception."""


async def test_engine_that_loses_a_row_answers_its_items_and_the_next_pass_works(
    pipeline: Pipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.run
    monkeypatch.setattr(engine, "run", lambda ids, mask: [values[1:] for values in whole(ids, mask)])
    (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)
    monkeypatch.setattr(engine, "run", whole)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_stream_that_waits_for_room_is_woken_when_the_queue_was_cancelled(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_s=0.0))
    pipeline.start()
    await outcomes(pipeline, message("w1"))
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Call(), None, patient=True)
    await engine.hold()
    stream = Call()
    waiting = await pipeline.submit(message("w2"), stream, None, patient=True)
    room = asyncio.ensure_future(pipeline.admission.room(stream))
    await asyncio.sleep(0)
    assert not room.done()
    for future in [*running, *waiting]:
        future.cancel()
    engine.gate.set()
    await asyncio.wait_for(room, 30)
    await pipeline.close()


@pytest.mark.parametrize("failure", [RuntimeError("secret"), Panic("secret")])
async def test_failing_pass_answers_its_items_and_the_next_pass_works(
    pipeline: Pipeline, engine: FakeEngine, failure: BaseException
) -> None:
    engine.fails = failure
    (bad,) = await outcomes(pipeline, message("poison"))
    assert isinstance(bad, InternalError)
    assert "secret" not in str(bad)
    (good,) = await outcomes(pipeline, message("w1"))
    assert embedding(good) == embedding_of("w1")


async def test_failing_tokenizer_answers_its_items(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def encode_batch_fast(self, texts: list[str]) -> list[tokenizers.Encoding]:
            raise Panic

    monkeypatch.setattr(pipeline.model.tokenizer, "_tokenizer", Broken())
    (bad,) = await outcomes(pipeline, message("w1"))
    assert isinstance(bad, InternalError)


async def test_timings_add_up(pipeline: Pipeline) -> None:
    (answer,) = await outcomes(pipeline, message("w1"))
    assert isinstance(answer, Result)
    timings = answer.timings
    assert timings.total_ns >= timings.tokenization_ns + timings.queue_ns + timings.compute_ns
    assert (timings.batch_items, timings.batch_tokens) == (1, 3)


async def test_closing_answers_what_was_accepted(model: Model, settings: Callable[..., Settings]) -> None:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    futures = await pipeline.submit(message(*["w1"] * 30), Call(), None)
    await asyncio.wait_for(pipeline.close(), 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*futures))


async def test_closing_waits_for_what_is_being_tokenized(model: Model, settings: Callable[..., Settings]) -> None:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    submitting = asyncio.ensure_future(pipeline.submit(message(*["w1 " * 200] * 300), Call(), None))
    await asyncio.sleep(0)
    await asyncio.wait_for(pipeline.close(), 30)
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*await submitting))


LONG = " ".join(f"w{number}" for number in range(40))


async def test_long_text_is_answered_from_all_its_windows(pipeline: Pipeline) -> None:
    wishes = Wishes(truncation=Truncation.WINDOW)
    short, long = await outcomes(pipeline, message("w1", LONG, wishes=wishes))
    assert isinstance(long, Result)
    assert isinstance(short, Result)
    assert (len(short.tokens.windows), len(long.tokens.windows), long.tokens.cut_at) == (1, 3, None)
    tokens = [len(window) for window in long.tokens.windows]
    # The fake engine's second number is that of tokens.
    assert long.numbers.embedding[1] == pytest.approx(sum(number * number for number in tokens) / sum(tokens))
    assert embedding(short) == embedding_of("w1")


async def test_cancelled_long_text_leaves_the_queue(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Call(), None)
    await engine.hold()
    (long,) = await pipeline.submit(message(LONG, wishes=Wishes(truncation=Truncation.WINDOW)), Call(), None)
    assert pipeline.queue.waiting == 3
    long.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert pipeline.queue.waiting == 0
    engine.gate.set()
    await running[0]
    assert engine.passes == [(1, 3)]


async def test_window_that_fails_fails_its_text_alone(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.fails = RuntimeError("secret")
    bad, good = await outcomes(pipeline, message(LONG + " poison", LONG, wishes=Wishes(truncation=Truncation.WINDOW)))
    # The good text may have shared a pass with the bad one; alone it is answered.
    assert isinstance(bad, InternalError)
    engine.fails = None
    (good,) = await outcomes(pipeline, message(LONG, wishes=Wishes(truncation=Truncation.WINDOW)))
    assert isinstance(good, Result)


async def test_what_does_not_fit_before_the_deadline_is_refused_and_the_rest_answered(
    pipeline: Pipeline, engine: FakeEngine
) -> None:
    for _ in range(200):
        pipeline.admission.learn(tokens=100, compute_s=1.0)
    # 100 tokens a second: of 50 texts with 2 tokens each, 40 are expected within 0.8 of a second, less a pass.
    pipeline.admission._pass_s = 0.0
    answers = await outcomes(pipeline, message(*["w1"] * 50), time.monotonic() + 1.0)
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 8 <= len(refused) <= 12
    assert answers[-len(refused) :] == refused
    assert all(isinstance(answer, Result) for answer in answers[: -len(refused)])

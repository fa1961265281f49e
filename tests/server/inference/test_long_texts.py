"""How the pipeline answers long texts, which may be truncated, refused or read in windows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from polyhead_server.errors import InternalError, OverloadedError
from polyhead_server.inference import postprocessing
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, Result
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.submissions import WINDOW, embedding, message, outcomes

LONG = " ".join(f"w{number}" for number in range(40))


async def test_long_text_counts_with_the_tokens_that_are_read(
    model: Model, engine: FakeEngine, settings: Callable[..., Settings]
) -> None:
    pipeline = Pipeline(model, settings(max_queue_tokens=40))
    engine.gate.clear()
    waiting = await pipeline.submit(message("w1"), Flow(), None)
    flow = Flow()
    (truncated,) = await pipeline.submit(message("w1 " * 1000), flow, None)
    (windows,) = await pipeline.submit(message("w1 " * 1000, options=WINDOW), flow, None)
    assert not truncated.done()
    assert isinstance(await windows, OverloadedError)
    engine.gate.set()
    pipeline.start()
    assert all(isinstance(one, Result) for one in await asyncio.gather(*waiting, truncated))
    await pipeline.close()


async def test_long_text_is_answered_from_all_its_windows(pipeline: Pipeline) -> None:
    short, long = await outcomes(pipeline, message("w1", LONG, options=WINDOW))
    assert isinstance(long, Result)
    assert isinstance(short, Result)
    assert (len(short.tokens.windows), len(long.tokens.windows), long.tokens.cut_at) == (1, 3, None)
    tokens = [len(window) for window in long.tokens.windows]
    # The fake engine's second value is the number of tokens.
    assert long.output.embedding[1] == pytest.approx(sum(number * number for number in tokens) / sum(tokens))
    assert embedding(short) == embedding_of("w1")


async def test_cancelled_long_text_leaves_the_queue(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (long,) = await pipeline.submit(message(LONG, options=WINDOW), Flow(), None)
    assert pipeline.scheduler.accounting.waiting_items == 3
    long.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert pipeline.scheduler.accounting.waiting_items == 0
    engine.gate.set()
    await running[0]
    assert engine.batch_shapes == [(1, 3)]


async def test_cancelled_long_text_logs_nothing(
    pipeline: Pipeline, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.gate.clear()
    running = await pipeline.submit(message("w1"), Flow(), None)
    await engine.hold()
    (long,) = await pipeline.submit(message(LONG, options=WINDOW), Flow(), None)
    long.cancel()
    engine.gate.set()
    await running[0]
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_failure_of_pooling_is_answered(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(postprocessing, "pool_windows", broken)
    (bad,) = await outcomes(pipeline, message(LONG, options=WINDOW))
    assert isinstance(bad, InternalError)


async def test_failing_window_fails_only_its_text(pipeline: Pipeline, engine: FakeEngine) -> None:
    engine.error = RuntimeError("secret")
    bad, good = await outcomes(pipeline, message(LONG + " poison", LONG, options=WINDOW))
    assert isinstance(bad, InternalError)
    engine.error = None
    (good,) = await outcomes(pipeline, message(LONG, options=WINDOW))
    assert isinstance(good, Result)

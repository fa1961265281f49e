"""The answer cache: alone, and in a pipeline."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from polyhead_server.errors import InternalError
from polyhead_server.inference.answer_cache import AnswerCache
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow, ItemOutcome, ModelOutput, RequestOptions, Result, Truncation
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.submissions import WINDOW, embedding, message, outcomes


def output(seed: int, dimensions: int = 8) -> ModelOutput:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((3, dimensions), dtype=np.float32)
    logits = (rng.standard_normal(3, dtype=np.float32), rng.standard_normal(1, dtype=np.float32))
    return ModelOutput(rows[1], logits, logits)


def bits(one: ModelOutput) -> tuple[bytes, ...]:
    return tuple(values.tobytes() for values in (one.embedding, *one.logits, *one.probabilities))


def result(outcome: ItemOutcome) -> Result:
    assert isinstance(outcome, Result)
    return outcome


def test_output_comes_back_to_the_last_bit() -> None:
    cache = AnswerCache(10_000)
    cache.put(b"a", output(1))
    cache.put(b"b", output(2))
    found = cache.get_many([b"b", b"x", b"a"])
    assert [one and bits(one) for one in found] == [bits(output(2)), None, bits(output(1))]


def test_least_recently_used_output_leaves_first() -> None:
    cache = AnswerCache(2**20)
    cache.put(b"0", output(0))
    size = cache.used_bytes
    cache = AnswerCache(3 * size)
    for key in (b"0", b"1", b"2"):
        cache.put(key, output(int(key)))
    cache.get_many([b"0"])
    cache.put(b"3", output(3))
    assert [one is not None for one in cache.get_many([b"0", b"1", b"2", b"3"])] == [True, False, True, True]
    assert (cache.count, cache.used_bytes) == (3, 3 * size)
    # Known already.
    cache.put(b"3", output(3))
    assert (cache.count, cache.used_bytes) == (3, 3 * size)


def test_output_larger_than_the_limit_is_not_kept() -> None:
    cache = AnswerCache(100)
    cache.put(b"a", output(1))
    assert (cache.count, cache.used_bytes) == (0, 0)


def test_bytes_are_those_that_python_allocates() -> None:
    rng, cache = random.Random(0), AnswerCache(2 * 2**20)
    tracemalloc.start()
    try:
        for number in range(5000):
            # Rows of a batch, which the cache must not keep alive.
            cache.put(rng.randbytes(4 * rng.randrange(3, 60)), output(number % 7, dimensions=64))
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1.75 * 2**20 < cache.used_bytes <= 2 * 2**20
    assert 0.8 * cache.used_bytes < allocated < 1.05 * cache.used_bytes


@pytest.fixture
def lookups() -> list[tuple[int, int]]:
    return []


@pytest.fixture
async def cached(
    model: Model, settings: Callable[..., Settings], lookups: list[tuple[int, int]]
) -> AsyncIterator[Pipeline]:
    """A pipeline with a cache of 1 MiB."""
    pipeline = Pipeline(
        model, settings(answer_cache_mb=1), observe_lookups=lambda hits, misses: lookups.append((hits, misses))
    )
    pipeline.start()
    yield pipeline
    await pipeline.close()


async def test_known_text_is_not_computed_again(
    cached: Pipeline, engine: FakeEngine, lookups: list[tuple[int, int]]
) -> None:
    (first,) = await outcomes(cached, message("w1 w2"))
    again, other = await outcomes(cached, message("w1 w2", "w2 w1"))
    assert engine.batch_shapes == [(1, 4), (1, 4)]
    assert bits(result(again).output) == bits(result(first).output)
    assert embedding(other) == embedding_of("w2 w1")
    assert lookups == [(0, 1), (1, 1)]
    assert cached.answer_cache
    assert cached.answer_cache.count == 2


async def test_timings_show_that_no_batch_was_needed(cached: Pipeline) -> None:
    await outcomes(cached, message("w1"))
    (again,) = await outcomes(cached, message("w1"))
    timings = result(again).timings
    assert timings.is_cached
    assert (timings.queue_ns, timings.compute_ns, timings.batch_items, timings.batch_tokens) == (0, 0, 0, 0)
    assert timings.total_ns >= timings.tokenization_ns > 0
    assert timings.admission_ns >= 0


async def test_options_that_do_not_change_the_tokens_share_an_output(cached: Pipeline, engine: FakeEngine) -> None:
    await outcomes(cached, message("w1", options=RequestOptions(dimensions=1)))
    await outcomes(cached, message("w1", options=RequestOptions(truncation=Truncation.ERROR)))
    assert engine.batch_shapes == [(1, 3)]


async def test_windows_come_from_the_cache_one_by_one(cached: Pipeline, engine: FakeEngine) -> None:
    text = " ".join(f"w{number}" for number in range(20))
    (first,) = await outcomes(cached, message(text, options=WINDOW))
    computed = list(engine.batch_shapes)
    (again,) = await outcomes(cached, message(text, options=WINDOW))
    assert engine.batch_shapes == computed
    assert bits(result(again).output) == bits(result(first).output)
    assert len(result(again).tokens.windows) == 2


async def test_errors_are_not_kept(cached: Pipeline, engine: FakeEngine) -> None:
    engine.error = RuntimeError("no")
    (failed,) = await outcomes(cached, message("poison"))
    assert isinstance(failed, InternalError)
    engine.error = None
    result((await outcomes(cached, message("poison")))[0])


async def test_cache_is_off_by_default(model: Model, settings: Callable[..., Settings]) -> None:
    pipeline = Pipeline(model, settings())
    assert pipeline.answer_cache is None
    pipeline.start()
    await pipeline.close()


async def test_replaced_pipeline_frees_its_cache_before_its_last_answers(cached: Pipeline, engine: FakeEngine) -> None:
    await outcomes(cached, message("w1"))
    engine.gate.clear()
    await cached.submit(message("w2"), Flow(), None)
    await engine.hold()
    closing = asyncio.ensure_future(cached.close())
    while cached.answer_cache is not None:
        await asyncio.sleep(0)
    assert not closing.done()
    engine.gate.set()
    await closing

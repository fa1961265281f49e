from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_server.inference.compute_slots import ComputeSlots
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Flow
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.polling import until
from tests.support.submissions import embedding, message, outcomes

TIMEOUT_S = 30


class CountingEngine(FakeEngine):
    """Counts the batches of all engines that run at once, and notes whose each is.

    Attributes:
        max_running: The most batches at once.
        order: Name of the engine of each batch, in the order of their starts.
        permits: A batch of any engine ends when it has got one.
    """

    max_running = 0
    order: list[str] = []  # noqa: RUF012 - shared by the engines of a test
    permits = threading.Semaphore(0)
    _running = 0
    _lock = threading.Lock()

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        with self._lock:
            CountingEngine._running += 1
            CountingEngine.max_running = max(self.max_running, self._running)
            self.order.append(self._name)
        try:
            assert self.permits.acquire(timeout=TIMEOUT_S)
            return super().run(input_ids, attention_mask)
        finally:
            with self._lock:
                CountingEngine._running -= 1


async def started(batches: int) -> list[str]:
    """Waits until so many batches have started; returns the names of their engines."""
    await until(lambda: len(CountingEngine.order) >= batches)
    return CountingEngine.order[:]


def test_slot_goes_to_the_thread_that_has_waited_longest() -> None:
    slots = ComputeSlots(1)
    slots.acquire()
    order: list[int] = []
    threads: list[threading.Thread] = []

    def take(number: int) -> None:
        slots.acquire()
        order.append(number)
        slots.release()

    for number in range(3):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        while len(slots._waiting) <= number:
            pass
    assert (slots.free, slots.in_use) == (0, 1)
    # A thread that returns at once with more work comes last.
    slots.release()
    take(3)
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert order == [0, 1, 2, 3]
    assert (slots.free, slots.in_use) == (1, 0)


@pytest.fixture
async def pair(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[tuple[Pipeline, Pipeline]]:
    """Two models with two compute threads each, which share two slots."""
    CountingEngine.max_running, CountingEngine.order = 0, []
    CountingEngine.permits = threading.Semaphore(0)
    slots = ComputeSlots(2)
    pipelines = []
    for name in ("one", "two"):
        own = Model(model.source, model.tokenizer, CountingEngine(name), (), max_batch_tokens=8)
        pipelines.append(Pipeline(own, settings(threads=2), slots=slots))
        pipelines[-1].start()
    yield pipelines[0], pipelines[1]
    await asyncio.wait_for(asyncio.gather(*(pipeline.close() for pipeline in pipelines)), TIMEOUT_S)
    assert slots.in_use == 0


async def test_models_share_the_cores(pair: tuple[Pipeline, Pipeline]) -> None:
    texts = [f"w{number}" for number in range(100)]
    calls = [asyncio.ensure_future(outcomes(pipeline, message(*texts))) for pipeline in pair]
    await started(2)
    CountingEngine.permits.release(1000)
    for answers in await asyncio.gather(*calls):
        assert [embedding(answer) for answer in answers] == [embedding_of(text) for text in texts]
    assert CountingEngine.max_running == 2


async def test_model_with_a_long_queue_does_not_keep_the_other_out(pair: tuple[Pipeline, Pipeline]) -> None:
    first, second = pair
    # Both slots are taken by the first model, whose queue is long.
    long = await first.submit(message(*(f"w{number}" for number in range(100))), Flow(), None)
    assert await started(2) == ["one"] * 2
    short = await second.submit(message("w5"), Flow(), None)
    await until(lambda: first.executor._slots._waiting)  # type: ignore[union-attr]
    # The next two slots: one goes to the thread that waits, one to whichever thread of the first model comes first.
    CountingEngine.permits.release(2)
    assert "two" in await started(4)
    CountingEngine.permits.release(1000)
    assert embedding(await asyncio.wait_for(short[0], TIMEOUT_S)) == embedding_of("w5")
    await asyncio.wait_for(asyncio.gather(*long), TIMEOUT_S)
    assert len(CountingEngine.order) > 10


async def test_failure_of_a_batch_gives_its_slot_back(pair: tuple[Pipeline, Pipeline]) -> None:
    first, _ = pair
    CountingEngine.permits.release(1000)
    first.model.engine.error = RuntimeError("broken")  # type: ignore[attr-defined]
    await outcomes(first, message(*["poison"] * 10))
    for pipeline in pair:
        assert embedding((await outcomes(pipeline, message("w1")))[0]) == embedding_of("w1")


async def test_wait_for_a_slot_counts_as_wait(pair: tuple[Pipeline, Pipeline]) -> None:
    first, second = pair
    CountingEngine.permits.release(1000)
    slots = first.executor._slots
    assert slots
    for _ in range(2):
        slots.acquire()
    futures = await second.submit(message("w1"), Flow(), None)
    await until(lambda: slots._waiting)
    waiting_since_ns = time.monotonic_ns()
    while time.monotonic_ns() == waiting_since_ns:
        await asyncio.sleep(0)
    waited_s = (time.monotonic_ns() - waiting_since_ns) / 1e9
    for _ in range(2):
        slots.release()
    answer = await asyncio.wait_for(futures[0], TIMEOUT_S)
    assert answer.timings.queue_ns >= waited_s * 1e9  # type: ignore[union-attr]
    assert second.admission._batch_s >= waited_s

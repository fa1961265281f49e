"""A reload replaces the model for all fronts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from polyhead_server.errors import ModelReplacedError, NotReadyError
from polyhead_server.fronts import engine_host
from polyhead_server.fronts.engine_client import EngineClient
from polyhead_server.inference.types import Flow, ItemOutcome, OutcomeFuture, Result
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from tests.support.fake_engine import embedding_of
from tests.support.front_processes import TIMEOUT_S, Front
from tests.support.polling import until
from tests.support.submissions import embedding, message

from .conftest import MakeModel, StartEngine, StartFront

pytestmark = pytest.mark.timeout(60)

OLD, NEW = 1.5, 3.0


async def answered(futures: list[OutcomeFuture]) -> list[ItemOutcome]:
    return await asyncio.wait_for(asyncio.gather(*futures), TIMEOUT_S)


def probability(outcome: ItemOutcome) -> float:
    """The first probability of the head whose temperature differs between the models."""
    assert isinstance(outcome, Result)
    return float(outcome.output.probabilities[0][0])


@pytest.fixture
async def service(settings: Callable[..., Settings]) -> InferenceService:
    return InferenceService(settings(), Metrics())


async def call(service: InferenceService, text: str) -> tuple[float, float]:
    """Returns the temperature of the model that answered, as its manifest says, and the probability."""
    model, (outcome,) = await service.answer(message(text), None)
    return model.source.manifest.heads[0].temperature, probability(outcome)


async def test_no_call_that_begins_after_an_answer_of_the_new_model_gets_the_old_one(
    new_engine: StartEngine, socket_path: Path, make_model: MakeModel, settings: Callable[..., Settings]
) -> None:
    engine = new_engine()
    await engine.start(make_model("0", temperature=OLD))
    services = [InferenceService(settings(), Metrics()) for _ in range(3)]
    fronts = [Front(socket_path, settings(), service.serve) for service in services]
    for front in fronts:
        await front.serving()
    begun = ended = 0
    newest = 0
    seen: list[int] = []
    stopping = False
    # Each reload has a temperature of its own.
    temperatures = [OLD + number for number in range(6)]
    probabilities: dict[float, float] = {}

    async def load(service: InferenceService) -> None:
        nonlocal begun, ended, newest
        while not stopping:
            begun += 1
            newest_at_begin = newest
            temperature, value = await call(service, "w50 w60")
            # Metadata and numbers are of the same model.
            assert probabilities.setdefault(temperature, value) == value
            version = temperatures.index(temperature)
            assert version >= newest_at_begin, "an old model has answered after a new one"
            newest = max(newest, version)
            seen.append(version)
            ended += 1

    tasks = [asyncio.create_task(load(service)) for service in services for _ in range(4)]
    for number, temperature in enumerate(temperatures[1:], 1):
        next_reload = ended + 100
        await until(partial(lambda goal: ended > goal or any(task.done() for task in tasks), next_reload))
        await engine.reload(make_model(str(number), temperature=temperature))
    await until(lambda: newest == 5 or any(task.done() for task in tasks))
    stopping = True
    await asyncio.gather(*tasks)
    assert begun == ended
    assert set(seen) == set(range(6))
    assert len(set(probabilities.values())) == 6
    for front in fronts:
        await front.stop()


async def test_what_was_admitted_before_a_reload_is_answered_by_the_old_model(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model("old", temperature=OLD))
    old = await front.serving()
    old_engine, old_core = engine.engine, engine.core
    old_engine.gate.clear()
    futures = await old.submit(message("w50"), Flow(unary=True), None)
    await until(lambda: old_core.executor.is_alive() and not old_core.scheduler.accounting.waiting_items)
    await old_engine.hold()
    replaced = engine.host.current
    assert replaced
    await engine.reload(make_model("new", temperature=NEW))
    new = await front.serving(models=2)
    (outcome,) = await answered(await new.submit(message("w50"), Flow(unary=True), None))
    assert not futures[0].done()
    closing = asyncio.ensure_future(replaced.close())
    old_engine.gate.set()
    (before,) = await answered(futures)
    assert embedding(before) == embedding(outcome) == embedding_of("w50")
    assert probability(before) != probability(outcome)
    await asyncio.wait_for(closing, TIMEOUT_S)
    assert old_engine.closed


async def test_a_message_for_the_old_model_is_submitted_again(
    new_engine: StartEngine,
    socket_path: Path,
    make_model: MakeModel,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A front that learns of the reload late, because its tokenizer takes long to load."""
    engine = new_engine()
    await engine.start(make_model("old", temperature=OLD))
    service = InferenceService(settings(), Metrics())
    front = Front(socket_path, settings(), service.serve)
    await front.serving()
    assert (await call(service, "w1"))[0] == OLD
    real_serve = front.client.link.serve
    served: list[int] = []
    monkeypatch.setattr(front.client.link, "serve", served.append)
    await engine.reload(make_model("new", temperature=NEW))
    late = asyncio.ensure_future(call(service, "w1"))
    flow = Flow()
    stream = await front.pipeline.submit(message("w1"), flow, None, blocking=True)
    assert stream == []
    waiting = asyncio.ensure_future(front.pipeline.wait_for_capacity(flow))
    await until(lambda: front.pipeline.target.is_stale)
    await asyncio.sleep(0.02)
    assert not late.done()
    assert not waiting.done()
    real_serve(served[0])
    assert (await asyncio.wait_for(late, TIMEOUT_S))[0] == NEW
    await asyncio.wait_for(waiting, TIMEOUT_S)
    await front.stop()


async def test_a_front_that_hangs_does_not_hold_up_a_reload(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "PREPARATION_TIMEOUT_S", 0.05)
    engine, hanging, front = new_engine(), new_front(), new_front()
    await engine.start(make_model("old", temperature=OLD))
    await hanging.serving()
    await front.serving()
    monkeypatch.setattr(hanging.client.link, "send", lambda _: None)
    await asyncio.wait_for(engine.reload(make_model("new", temperature=NEW)), TIMEOUT_S)
    new = await front.serving(models=2)
    (outcome,) = await answered(await new.submit(message("w50"), Flow(unary=True), None))
    assert isinstance(outcome, Result)


async def test_a_front_that_starts_later_gets_the_model_that_serves(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine = new_engine()
    await engine.start(make_model("old", temperature=OLD))
    await engine.reload(make_model("new", temperature=NEW))
    # It is connected while another model is being prepared.
    await engine.host.prepare(make_model("next", temperature=4.0))
    pipeline = await new_front().serving()
    assert pipeline.model.source.manifest.heads[0].temperature == NEW


async def test_a_call_outlives_an_engine_whose_successor_has_another_model(
    new_engine: StartEngine, socket_path: Path, make_model: MakeModel, settings: Callable[..., Settings]
) -> None:
    engine = new_engine()
    await engine.start(make_model("old", temperature=OLD))
    service = InferenceService(settings(), Metrics())
    front = Front(socket_path, settings(), service.serve)
    await front.serving()
    engine.engine.gate.clear()
    waiting = asyncio.ensure_future(call(service, "w1"))
    await engine.engine.hold()
    await engine.stop()
    await new_engine().start(make_model("new", temperature=NEW))
    assert (await asyncio.wait_for(waiting, TIMEOUT_S))[0] == NEW
    await front.stop()


async def test_a_model_that_cannot_be_used_ends_the_front(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model("old"))
    pipeline = await front.serving()
    assert pipeline.failure_reason() is None

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("polyhead_server.fronts.engine_link.import_model", fail)
    monkeypatch.setattr(engine_host, "PREPARATION_TIMEOUT_S", 0.05)
    await engine.reload(make_model("new", temperature=NEW))
    await until(pipeline.failure_reason)
    assert "MemoryError" in str(pipeline.failure_reason())


async def test_a_front_without_an_engine_is_not_ready(
    service: InferenceService, socket_path: Path, settings: Callable[..., Settings]
) -> None:
    client = EngineClient(socket_path, settings(), lambda _: None)
    running = asyncio.create_task(client.link.run())
    await asyncio.sleep(0.05)
    with pytest.raises(NotReadyError):
        await call(service, "w1")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_stream_does_not_wait_for_a_model_that_is_retired(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(max_queue_tokens=40), new_front()
    await engine.start(make_model("old"))
    pipeline = await front.serving()
    engine.engine.gate.clear()
    flow = Flow()
    futures = await pipeline.submit(message("w9"), flow, None, blocking=True)
    await engine.engine.hold()
    futures += await pipeline.submit(message(*[f"w{n} w1 w2" for n in range(10)]), flow, None, blocking=True)
    assert await pipeline.submit(message("w1 w2"), flow, None, blocking=True) == []
    waiting = asyncio.ensure_future(pipeline.wait_for_capacity(flow))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    front.client.retire(lost=False)
    await asyncio.wait_for(waiting, TIMEOUT_S)
    # What it has begun is answered.
    assert not any(future.done() for future in futures)
    engine.engine.gate.set()
    assert all(isinstance(outcome, Result) for outcome in await answered(futures))
    await asyncio.wait_for(pipeline.close(), TIMEOUT_S)


async def test_a_retired_model_whose_engine_ends_gives_up_what_it_has_not_answered(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model("old"))
    pipeline = await front.serving()
    engine.engine.gate.clear()
    futures = await pipeline.submit(message("w1"), Flow(unary=True), None)
    await engine.engine.hold()
    # Its texts are still being tokenized when the engine ends.
    encode, resume = pipeline.model.tokenizer.encode_async, asyncio.Event()

    async def encode_later(*arguments: Any) -> Any:
        await resume.wait()
        return await encode(*arguments)

    monkeypatch.setattr(pipeline.model.tokenizer, "encode_async", encode_later)
    late = asyncio.ensure_future(pipeline.submit(message("w2"), Flow(unary=True), None))
    await asyncio.sleep(0)
    front.client.retire(lost=False)
    await engine.stop()
    assert isinstance((await answered(futures))[0], ModelReplacedError)
    resume.set()
    assert isinstance((await answered(await late))[0], ModelReplacedError)
    await asyncio.wait_for(pipeline.close(), TIMEOUT_S)

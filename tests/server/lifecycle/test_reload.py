from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from polyhead_server.errors import ReloadError, StartupError
from polyhead_server.inference import pipeline
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import Flow, Item, Message, RequestOptions, Result
from polyhead_server.lifecycle.reload import Reloader, state_of
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from tests.support.fake_engine import MAX_TOKENS, FakeEngine, embedding_of

pytestmark = pytest.mark.timeout(60)


class Shelf:
    """Where the next bundle comes from, and a server with one compute thread that takes it."""

    def __init__(self, settings: Settings) -> None:
        self.next: Model | Exception
        self.loads = 0
        self.counts: list[str] = []
        self.settings = settings
        self.service = InferenceService(settings, Metrics())
        self.reloader = Reloader(self.load, self.start, self.service, self.counts.append)

    async def load(self) -> Model:
        self.loads += 1
        await asyncio.sleep(0)
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def start(self, model: Model) -> Pipeline:
        pipeline = Pipeline(model, self.settings)
        pipeline.start()
        return pipeline

    @property
    def pipeline(self) -> Pipeline:
        assert self.service.pipeline is not None
        return self.service.pipeline

    async def ask(self, text: str) -> asyncio.Future[object]:
        (future,) = await self.pipeline.submit(Message((Item("", text),), RequestOptions()), Flow(), None)
        return future  # type: ignore[return-value]


@pytest.fixture
async def shelf(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Shelf]:
    shelf = Shelf(settings())
    shelf.service.serve(shelf.start(model))
    yield shelf
    await shelf.pipeline.close()


@pytest.fixture
def retrained(model: Model, tokenizer_file: Path) -> Model:
    """The same backbone with another version of a head."""
    return successor(model, tokenizer_file, topic="T" * 16)


def successor(model: Model, tokenizer_file: Path, space: str = "e" * 16, topic: str = "t" * 16) -> Model:
    manifest = model.source.manifest
    fingerprints = bundle.Fingerprints(space, {"topic": topic, "sentiment": "s" * 16})
    variants = {"fp32": replace(manifest.variants["fp32"], fingerprints=fingerprints)}
    source = bundle.Bundle(Path("new"), replace(manifest, variants=variants), "f" * 64)
    return Model(source, Tokenizer(tokenizer_file, MAX_TOKENS, 1000), FakeEngine(), (), max_batch_tokens=256)


async def test_what_was_accepted_is_answered_by_the_old_model_and_the_rest_by_the_new(
    shelf: Shelf, engine: FakeEngine, retrained: Model
) -> None:
    engine.gate.clear()
    before = [await shelf.ask("w1") for _ in range(5)]
    old, shelf.next = shelf.pipeline, retrained
    assert await shelf.reloader.reload() is retrained
    after = await shelf.ask("w2")
    assert isinstance(await after, Result)
    assert not any(future.done() for future in before)
    engine.gate.set()
    for future in before:
        outcome = await future
        assert isinstance(outcome, Result)
        assert outcome.output.embedding.tolist() == embedding_of("w1")
    assert sum(count for count, _ in engine.batch_shapes) == 5
    assert shelf.pipeline is not old
    assert shelf.counts == ["success"]


async def test_old_model_is_freed_when_its_last_item_is_out(shelf: Shelf, engine: FakeEngine, retrained: Model) -> None:
    old, executor = weakref.ref(shelf.pipeline), shelf.pipeline.executor
    engine.gate.clear()
    last = await shelf.ask("w1")
    shelf.next = retrained
    await shelf.reloader.reload()
    assert old() is not None
    closed_early = engine.closed
    engine.gate.set()
    await last
    await asyncio.gather(*shelf.reloader._ending)
    assert not executor.is_alive()
    # Also while something still refers to it, such as a stream that waits for its next message.
    assert (closed_early, engine.closed) == (False, True)
    del executor, last
    gc.collect()
    assert old() is None


async def test_all_that_was_accepted_is_answered_however_long_it_takes(
    shelf: Shelf, engine: FakeEngine, retrained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "JOIN_TIMEOUT_S", 0.01)
    monkeypatch.setattr(pipeline, "CLOSE_CHECK_INTERVAL_S", 0.01)
    engine.gate.clear()
    # None rides with another.
    accepted = [await shelf.ask("w1 " * length) for length in (1, 4, 8, 12)]
    shelf.next = retrained
    await shelf.reloader.reload()
    (ending,) = shelf.reloader._ending
    await asyncio.wait({ending}, timeout=0.2)
    assert not ending.done()
    engine.gate.set()
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*accepted))
    await ending
    assert engine.closed


async def test_engine_in_which_a_thread_hangs_is_not_closed(
    shelf: Shelf, engine: FakeEngine, retrained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "JOIN_TIMEOUT_S", 0.01)
    engine.gate.clear()
    last = await shelf.ask("w1")
    await engine.hold()
    shelf.next = retrained
    await shelf.reloader.reload()
    await asyncio.gather(*shelf.reloader._ending)
    assert not engine.closed
    engine.gate.set()
    assert isinstance(await last, Result)


async def test_model_that_is_refused_is_freed(shelf: Shelf, model: Model, tokenizer_file: Path) -> None:
    refused = shelf.next = successor(model, tokenizer_file, space="E" * 16)
    with pytest.raises(ReloadError):
        await shelf.reloader.reload()
    assert isinstance(refused.engine, FakeEngine)
    assert refused.engine.closed


async def test_bundle_that_cannot_be_served_leaves_the_old_one(shelf: Shelf) -> None:
    old, shelf.next = shelf.pipeline, StartupError("model.onnx: was changed")
    with pytest.raises(ReloadError, match=r"the old model stays: model\.onnx: was changed"):
        await shelf.reloader.reload()
    assert shelf.pipeline is old
    assert isinstance(await (await shelf.ask("w1")), Result)
    assert shelf.counts == ["refused"]


async def test_loading_that_fails_in_any_way_leaves_the_old_one(shelf: Shelf) -> None:
    old, shelf.next = shelf.pipeline, MemoryError("a secret path")
    with pytest.raises(ReloadError) as caught:
        await shelf.reloader.reload()
    assert "secret" not in str(caught.value)
    assert shelf.pipeline is old
    assert shelf.counts == ["refused"]


async def test_another_embedding_space_has_to_be_forced(shelf: Shelf, model: Model, tokenizer_file: Path) -> None:
    old, shelf.next = shelf.pipeline, successor(model, tokenizer_file, space="o" * 16)
    with pytest.raises(ReloadError, match="embeddings of both cannot be compared"):
        await shelf.reloader.reload()
    assert shelf.pipeline is old
    shelf.next = successor(model, tokenizer_file, space="o" * 16)
    assert await shelf.reloader.reload(force=True) is shelf.pipeline.model


async def test_two_reloads_come_one_after_the_other(shelf: Shelf, model: Model, tokenizer_file: Path) -> None:
    shelf.next = successor(model, tokenizer_file)
    first = asyncio.ensure_future(shelf.reloader.reload())
    second = asyncio.ensure_future(shelf.reloader.reload())
    await asyncio.sleep(0)
    assert shelf.loads == 1
    await first
    shelf.next = successor(model, tokenizer_file)
    assert await second is shelf.next
    assert shelf.loads == 2


async def test_nothing_follows_a_model_that_is_not_there(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ReloadError, match="no model yet"):
        await Shelf(settings()).reloader.reload()


async def test_watching_reloads_when_the_manifest_was_replaced_and_tries_once(
    shelf: Shelf, retrained: Model, tmp_path: Path
) -> None:
    manifest = tmp_path / "bundle.json"
    manifest.write_text("old")
    watching = asyncio.ensure_future(shelf.reloader.watch(manifest, state_of(manifest), 0))

    async def replace_and_wait(number: int) -> None:
        replacement = tmp_path / "new"
        replacement.write_text(f"new {number}")
        replacement.rename(manifest)
        while shelf.loads < number:
            await asyncio.sleep(0)

    shelf.next = StartupError("damaged")
    await asyncio.wait_for(replace_and_wait(1), 10)
    shelf.next = retrained
    # It was told once that it is damaged, and is looked at again when it changes.
    for _ in range(100):
        await asyncio.to_thread(state_of, manifest)
    assert shelf.loads == 1
    await asyncio.wait_for(replace_and_wait(2), 10)
    while shelf.pipeline.model is not retrained:
        await asyncio.sleep(0)
    manifest.unlink()
    for _ in range(100):
        await asyncio.to_thread(state_of, manifest)
    assert not watching.done()
    assert shelf.loads == 2
    watching.cancel()

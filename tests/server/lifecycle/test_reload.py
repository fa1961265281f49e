from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.errors import ReloadError, StartupError
from polyhead_server.inference import engine_core
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import Flow, Item, Message, RequestOptions, Result
from polyhead_server.lifecycle.bundle_watcher import BundleWatcher
from polyhead_server.lifecycle.operations import Operations
from polyhead_server.lifecycle.reload import Reloader
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from tests.support.fake_engine import MAX_TOKENS, FakeEngine, embedding_of

pytestmark = pytest.mark.timeout(60)


class ReloadableServer:
    """A server with one compute thread, and the model that its next load returns.

    Attributes:
        next: The model, or the error that the load raises.
        loads: How many loads have begun.
        counts: The outcome of each reload.
    """

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
        assert isinstance(self.service.pipeline, Pipeline)
        return self.service.pipeline

    async def submit(self, text: str) -> asyncio.Future[object]:
        (future,) = await self.pipeline.submit(Message((Item("", text),), RequestOptions()), Flow(), None)
        return future  # type: ignore[return-value]


@pytest.fixture
async def server(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[ReloadableServer]:
    server = ReloadableServer(settings())
    server.service.serve(server.start(model))
    yield server
    await server.pipeline.close()


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


async def test_accepted_items_get_answers_of_the_old_model_and_later_items_of_the_new(
    server: ReloadableServer, engine: FakeEngine, retrained: Model
) -> None:
    engine.gate.clear()
    texts = [f"w{number}" for number in range(5)]
    before = [await server.submit(text) for text in texts]
    old, server.next = server.pipeline, retrained
    assert await server.reloader.reload() is retrained
    after = await server.submit("w2")
    assert isinstance(await after, Result)
    assert not any(future.done() for future in before)
    engine.gate.set()
    for text, future in zip(texts, before, strict=True):
        outcome = await future
        assert isinstance(outcome, Result)
        assert outcome.output.embedding.tolist() == embedding_of(text)
    assert sum(count for count, _ in engine.batch_shapes) == 5
    assert server.pipeline is not old
    assert server.counts == ["success"]


async def test_old_model_is_freed_after_its_last_answer(
    server: ReloadableServer, engine: FakeEngine, retrained: Model
) -> None:
    old = weakref.ref(server.pipeline)
    executor = server.pipeline.executor
    assert executor.is_alive()
    engine.gate.clear()
    last = await server.submit("w1")
    server.next = retrained
    await server.reloader.reload()
    assert old() is not None
    closed_early = engine.closed
    engine.gate.set()
    await last
    await asyncio.gather(*server.reloader.closing)
    assert not executor.is_alive()
    # The engine is closed even while something refers to it, such as a stream that waits for its next message.
    assert (closed_early, engine.closed) == (False, True)
    del executor, last
    # The loop may hold callbacks of the old pipeline for some more turns.
    async with asyncio.timeout(10):
        while old() is not None:
            await asyncio.sleep(0.01)
            gc.collect()


async def test_accepted_items_are_answered_however_long_it_takes(
    server: ReloadableServer, engine: FakeEngine, retrained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_core, "JOIN_TIMEOUT_S", 0.01)
    monkeypatch.setattr(engine_core, "CLOSE_CHECK_INTERVAL_S", 0.01)
    engine.gate.clear()
    # The lengths differ so much that no two items share a batch.
    accepted = [await server.submit("w1 " * length) for length in (1, 4, 8, 12)]
    server.next = retrained
    await server.reloader.reload()
    (closing,) = server.reloader.closing
    await asyncio.wait({closing}, timeout=0.2)
    assert not closing.done()
    # For the threads, once there is nothing to wait for.
    monkeypatch.setattr(engine_core, "JOIN_TIMEOUT_S", 10.0)
    engine.gate.set()
    assert all(isinstance(outcome, Result) for outcome in await asyncio.gather(*accepted))
    await closing
    assert engine.closed


async def test_engine_is_not_closed_while_a_thread_hangs_in_it(
    server: ReloadableServer, engine: FakeEngine, retrained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_core, "JOIN_TIMEOUT_S", 0.01)
    engine.gate.clear()
    last = await server.submit("w1")
    await engine.hold()
    server.next = retrained
    await server.reloader.reload()
    await asyncio.gather(*server.reloader.closing)
    assert not engine.closed
    engine.gate.set()
    assert isinstance(await last, Result)


async def test_refused_model_is_freed(server: ReloadableServer, model: Model, tokenizer_file: Path) -> None:
    refused = server.next = successor(model, tokenizer_file, space="E" * 16)
    with pytest.raises(ReloadError):
        await server.reloader.reload()
    assert isinstance(refused.engine, FakeEngine)
    assert refused.engine.closed


async def test_old_model_stays_if_the_bundle_is_invalid(server: ReloadableServer) -> None:
    old, server.next = server.pipeline, StartupError("model.onnx: was changed")
    with pytest.raises(ReloadError, match=r"the old model stays: model\.onnx: was changed"):
        await server.reloader.reload()
    assert server.pipeline is old
    assert isinstance(await (await server.submit("w1")), Result)
    assert server.counts == ["refused"]


async def test_old_model_stays_if_loading_fails_for_any_reason(server: ReloadableServer) -> None:
    old, server.next = server.pipeline, MemoryError("a secret path")
    with pytest.raises(ReloadError) as caught:
        await server.reloader.reload()
    assert "secret" not in str(caught.value)
    assert server.pipeline is old
    assert server.counts == ["refused"]


async def test_another_embedding_space_requires_force(
    server: ReloadableServer, model: Model, tokenizer_file: Path
) -> None:
    old, server.next = server.pipeline, successor(model, tokenizer_file, space="o" * 16)
    with pytest.raises(ReloadError, match="embeddings of the two cannot be compared"):
        await server.reloader.reload()
    assert server.pipeline is old
    server.next = successor(model, tokenizer_file, space="o" * 16)
    assert await server.reloader.reload(force=True) is server.pipeline.model


async def test_reloads_run_one_after_the_other(server: ReloadableServer, model: Model, tokenizer_file: Path) -> None:
    server.next = successor(model, tokenizer_file)
    first = asyncio.ensure_future(server.reloader.reload())
    second = asyncio.ensure_future(server.reloader.reload())
    await asyncio.sleep(0)
    assert server.loads == 1
    await first
    server.next = successor(model, tokenizer_file)
    assert await second is server.next
    assert server.loads == 2


async def test_reload_before_the_first_model_is_refused(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ReloadError, match="no serving model"):
        await ReloadableServer(settings()).reloader.reload()


async def test_replaced_bundle_is_loaded_once_even_if_it_is_refused(
    server: ReloadableServer, retrained: Model, tmp_path: Path
) -> None:
    manifest = tmp_path / "bundle.json"
    manifest.write_text("old")
    operations = Operations(server.service, Health(), DriftMonitor(Settings(bundle=Path("fake"))))
    operations.reloader = server.reloader
    looks = asyncio.Queue[None]()

    async def sleep(_: float) -> None:
        await looks.get()

    async def look(times: int = 1) -> None:
        for _ in range(times):
            looks.put_nowait(None)
        while not looks.empty():
            await asyncio.sleep(0)

    async def replace_and_wait(number: int) -> None:
        replacement = tmp_path / "new"
        replacement.write_text(f"new {number}")
        replacement.rename(manifest)
        await look()
        while len(server.counts) < number:
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(BundleWatcher(tmp_path).watch(operations.reload_and_log, 5, sleep))
    server.next = StartupError("damaged")
    await asyncio.wait_for(replace_and_wait(1), 10)
    server.next = retrained
    # The refused bundle is not loaded again until it changes.
    await look(3)
    assert server.loads == 1
    await asyncio.wait_for(replace_and_wait(2), 10)
    assert server.pipeline.model is retrained
    manifest.unlink()
    await look(3)
    assert not watching.done()
    assert (server.loads, server.counts) == (2, ["refused", "success"])
    watching.cancel()

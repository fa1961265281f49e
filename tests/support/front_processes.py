"""An engine host and fronts that share the event loop of a test: all that --fronts has but the processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
from polyhead_server.fronts.engine_client import EngineClient
from polyhead_server.fronts.engine_host import EngineHost
from polyhead_server.fronts.pending import Target
from polyhead_server.fronts.remote_pipeline import RemotePipeline
from polyhead_server.fronts.served_model import ServedModel
from polyhead_server.inference.engine_core import EngineCore
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import load_novelty
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine
from tests.support.small_bundle import MANIFEST, write_sources

TIMEOUT_S = 30.0


def write_model(folder: Path, tokenizer: Path, temperature: float = 1.5) -> Model:
    """Writes a bundle with a word-level tokenizer and opens it with a fake engine."""
    folder.mkdir(parents=True)
    sources = {**write_sources(folder / "sources"), "tokenizer.json": tokenizer}
    topic, *others = MANIFEST.heads
    heads = (dataclasses.replace(topic, temperature=temperature), *others)
    dimensions = MANIFEST.embedding.dimensions
    np.save(folder / "novelty.npy", np.eye(2, dimensions, dtype=np.float16))
    sources["novelty.npy"] = folder / "novelty.npy"
    novelty = bundle.Novelty(centroids=1, variances=(4.0,), noise=1.0, percentiles=(0.0, 1.0, 4.0))
    source = bundle.write(folder / "bundle", dataclasses.replace(MANIFEST, heads=heads, novelty=novelty), sources)
    return open_model(source)


def open_model(source: bundle.Bundle) -> Model:
    """Opens a bundle with a fake engine of its own."""
    tokens = source.manifest.max_tokens
    tokenizer = Tokenizer(source.file("tokenizer.json"), tokens, max_characters=1000)
    return Model(source, tokenizer, FakeEngine(), (), max_batch_tokens=256, novelty=load_novelty(source))


class EngineProcess:
    """The engine's side.

    Attributes:
        host: Accepts the fronts.
        engine: The fake engine of the model that was started last.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.host = EngineHost(path)
        self._settings = settings
        self._started: list[ServedModel] = []

    @property
    def engine(self) -> FakeEngine:
        engine = self._started[-1].model.engine
        assert isinstance(engine, FakeEngine)
        return engine

    @property
    def core(self) -> EngineCore:
        return self._started[-1].core

    async def start(self, model: Model) -> None:
        """Serves a model and accepts fronts."""
        await self.reload(model)
        self.host.listen()

    async def reload(self, model: Model) -> ServedModel:
        """Serves another model from now on."""
        await self.host.prepare(model)

        def fail(error: BaseException) -> None:
            del error

        core = EngineCore(model, self._settings, on_exception=fail)
        core.start()
        self._started.append(ServedModel(self.host.number_of(model), core))
        self.host.serve(self._started[-1])
        return self._started[-1]

    async def stop(self) -> None:
        """Ends at once, as a process that is killed."""
        self.host.close()
        for served in self._started:
            assert isinstance(served.model.engine, FakeEngine)
            served.model.engine.gate.set()
            await served.core.close()
        self._started.clear()


class Front:
    """A front's side.

    Attributes:
        client: The connection to the engine.
        pipelines: A pipeline for each model that was served, the newest last.
    """

    def __init__(
        self, path: Path, settings: Settings, on_pipeline: Callable[[RemotePipeline], None] | None = None
    ) -> None:
        self.pipelines: list[RemotePipeline] = []
        self._settings = settings
        self._on_pipeline = on_pipeline
        self._changed = asyncio.Event()
        self.client = EngineClient(path, settings, self._serve)
        self._task = asyncio.create_task(self.client.link.run())

    @property
    def pipeline(self) -> RemotePipeline:
        return self.pipelines[-1]

    async def serving(self, models: int = 1) -> RemotePipeline:
        """Waits until so many models have been served, and returns the pipeline of the last."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.pipelines) < models:
                self._changed.clear()
                await self._changed.wait()
        return self.pipeline

    async def stop(self) -> None:
        """Ends at once, as a process that is killed."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _serve(self, target: Target) -> None:
        self.pipelines.append(RemotePipeline(self.client, target, self._settings))
        if self._on_pipeline:
            self._on_pipeline(self.pipeline)
        self._changed.set()

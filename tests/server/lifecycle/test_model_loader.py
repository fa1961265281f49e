"""Loads that take too long: they are abandoned, and others may follow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Loading, Model
from polyhead_server.lifecycle.model_loader import MAX_ABANDONED, ModelLoader

from tests.support.fake_engine import FakeEngine
from tests.support.polling import until

pytestmark = pytest.mark.timeout(30)


class FakeModel:
    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


class Loads:
    """Loads that hang until they are let go."""

    def __init__(self) -> None:
        self.hang = True
        self.resume = threading.Event()
        self.engines: list[FakeEngine] = []
        self.models: list[FakeModel] = []

    def load(self, loading: Loading) -> Model:
        engine = FakeEngine()
        self.engines.append(engine)
        loading.guard(cast(Any, engine))
        if self.hang:
            self.resume.wait()
        self.models.append(FakeModel())
        return cast(Model, self.models[-1])


@pytest.fixture
def loads() -> Iterator[Loads]:
    loads = Loads()
    yield loads
    loads.resume.set()


async def test_load_within_the_limit_returns_the_model(loads: Loads) -> None:
    loads.hang = False
    assert await ModelLoader(loads.load, 20).load() is cast(Any, loads.models[0])
    assert not loads.engines[0].closed


async def test_load_that_hangs_is_abandoned_and_another_may_follow(loads: Loads) -> None:
    loader = ModelLoader(loads.load, 0.05)
    with pytest.raises(StartupError, match=r"loading took longer than 0.05 s \(--start-timeout-s\)") as caught:
        await loader.load()
    assert caught.value.transient
    # What the engine computes is stopped.
    await until(lambda: loads.engines and loads.engines[0].closed)
    loads.hang = False
    loader._timeout_s = 20
    model = await loader.load()
    assert not loads.engines[1].closed
    assert model is cast(Any, loads.models[0])


async def test_model_of_an_abandoned_load_is_closed(loads: Loads) -> None:
    with pytest.raises(StartupError, match="took longer"):
        await ModelLoader(loads.load, 0.05).load()
    loads.resume.set()
    await until(lambda: loads.models and loads.models[0].closed.is_set())


async def test_abandoned_loads_are_bounded(loads: Loads) -> None:
    loader = ModelLoader(loads.load, 0.05)
    for _ in range(MAX_ABANDONED):
        with pytest.raises(StartupError, match="took longer"):
            await loader.load()
    with pytest.raises(StartupError, match="still running; restart the server"):
        await loader.load()
    await until(lambda: len(loads.engines) == MAX_ABANDONED)
    loads.resume.set()
    loads.hang = False
    loader._timeout_s = 20
    await until(lambda: len(loads.models) >= MAX_ABANDONED and all(model.closed.is_set() for model in loads.models))
    await loader.load()


async def test_cancelled_load_is_abandoned(loads: Loads) -> None:
    loading = asyncio.create_task(ModelLoader(loads.load, 20).load())
    await until(lambda: loads.engines)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert loads.engines[0].closed


async def test_error_of_a_load_is_raised() -> None:
    def fail(_: Loading) -> Model:
        raise StartupError("it is damaged")

    with pytest.raises(StartupError, match="it is damaged"):
        await ModelLoader(fail, 20).load()


def test_engine_opened_after_the_load_was_abandoned_is_closed() -> None:
    loading, engine = Loading(), FakeEngine()
    loading.abandon()
    loading.guard(cast(Any, engine))
    assert engine.closed
    with pytest.raises(StartupError):
        loading.raise_if_abandoned()

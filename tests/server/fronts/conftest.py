"""Fixtures of the tests of fronts: an engine's side and a front's side in one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from polyhead_server.inference.model import Model
from polyhead_server.settings import Settings

from tests.support.front_processes import EngineProcess, Front, write_model

StartEngine = Callable[..., EngineProcess]
StartFront = Callable[..., Front]
MakeModel = Callable[..., Model]


@pytest.fixture
def make_model(tmp_path: Path, tokenizer_file: Path) -> MakeModel:
    def make(name: str = "model", temperature: float = 1.5) -> Model:
        return write_model(tmp_path / name, tokenizer_file, temperature)

    return make


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
async def new_engine(socket_path: Path, settings: Callable[..., Settings]) -> AsyncIterator[StartEngine]:
    started: list[EngineProcess] = []

    def make(**values: object) -> EngineProcess:
        started.append(EngineProcess(socket_path, settings(**values)))
        return started[-1]

    yield make
    for one in started:
        await one.stop()


@pytest.fixture
async def new_front(socket_path: Path, settings: Callable[..., Settings]) -> AsyncIterator[StartFront]:
    started: list[Front] = []

    def make(**values: object) -> Front:
        started.append(Front(socket_path, settings(**values)))
        return started[-1]

    yield make
    for one in started:
        await one.stop()

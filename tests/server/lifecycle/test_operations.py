"""Operations on one server process, with a fake service and a fake reloader."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import pytest
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.errors import InternalError, NotReadyError, ReloadError
from polyhead_server.inference.intake import Intake
from polyhead_server.inference.model import Model
from polyhead_server.lifecycle.operations import Operations
from polyhead_server.lifecycle.reload import Reloader
from polyhead_server.process_reports import WorkerStats
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

pytestmark = pytest.mark.timeout(60)


class FakeService:
    """An inference service with three running calls."""

    def served_name(self) -> str:
        return "m"

    def stats(self) -> WorkerStats:
        return WorkerStats(os.getpid(), "m", True, 1.0, 3, 0, 0, 0.0, 0, 0, 0, 0, 0.0, {}, 1)


class FakeReloader:
    """Loads until its gate is open, then returns the model or raises ``fails``.

    Attributes:
        forced: ``force`` of each reload, in order.
        max_running: The most reloads that ran at once.
    """

    def __init__(self, model: Model) -> None:
        self.forced: list[bool] = []
        self.max_running = 0
        self.fails: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._model = model
        self._running = 0

    async def reload(self, *, force: bool) -> Model:
        self.forced.append(force)
        self._running += 1
        self.max_running = max(self.max_running, self._running)
        try:
            await self.gate.wait()
        finally:
            self._running -= 1
        if self.fails:
            raise self.fails
        return self._model


@pytest.fixture
async def health() -> Health:
    health = Health()
    await health.set(serving=True, alive=True)
    return health


@pytest.fixture
def operations(health: Health) -> Operations:
    return Operations(cast(InferenceService, FakeService()), health, DriftMonitor(Settings(bundle=Path("fake"))))


@pytest.fixture
async def reloader(operations: Operations, model: Model) -> FakeReloader:
    reloader = FakeReloader(model)
    operations.reloader = cast("Reloader[Intake]", reloader)
    return reloader


async def test_reload_before_the_model_is_ready_is_refused(operations: Operations) -> None:
    with pytest.raises(NotReadyError):
        await operations.reload(force=False)


async def test_reload_returns_the_new_model(operations: Operations, reloader: FakeReloader, model: Model) -> None:
    result = await operations.reload(force=True)
    assert reloader.forced == [True]
    assert result.model_id == model.source.model_id
    assert result.head_fingerprints == {"topic": "t" * 16, "sentiment": "s" * 16}
    assert result.identity.embedding_space == model.fingerprints.embedding_space


async def test_reload_continues_without_its_caller_and_delays_the_next(
    operations: Operations, reloader: FakeReloader, model: Model
) -> None:
    reloader.gate.clear()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(operations.reload(force=False), 0.01)
    assert len(reloader.forced) == 1
    last = asyncio.create_task(operations.reload(force=False))
    await asyncio.sleep(0)
    assert len(reloader.forced) == 1
    reloader.gate.set()
    assert (await last).model_id == model.source.model_id
    # The first reload, which was not cancelled, and the last, which may find another bundle than the first.
    assert (len(reloader.forced), reloader.max_running) == (2, 1)


async def test_drained_server_is_alive(operations: Operations, health: Health) -> None:
    await operations.drain()
    assert operations.drained
    assert (health.serving, health.alive) == (False, True)


async def test_drain_before_the_model_is_ready_is_remembered(operations: Operations, health: Health) -> None:
    await health.set(serving=False, alive=False)
    await operations.drain()
    assert operations.drained
    assert not health.alive


async def test_stats_show_whether_the_server_is_drained(operations: Operations) -> None:
    assert (await operations.stats()).serving
    await operations.drain()
    stats = await operations.stats()
    assert (stats.requests_running, stats.serving) == (3, False)


async def test_unexpected_error_is_reported_by_its_incident_alone(
    operations: Operations, reloader: FakeReloader
) -> None:
    reloader.fails = RuntimeError("a secret")
    with pytest.raises(InternalError) as caught:
        await operations.reload(force=False)
    assert "secret" not in str(caught.value)


async def test_process_without_memory_exits(
    operations: Operations, reloader: FakeReloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    reloader.fails = MemoryError()
    with pytest.raises(SystemExit):
        await operations.reload(force=False)


async def test_reload_by_signal_logs_its_failure_and_raises_nothing(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    await operations.reload_and_log()
    assert "not reloaded: the model is being loaded" in caplog.text


async def test_refused_reload_by_signal_raises_nothing(operations: Operations, reloader: FakeReloader) -> None:
    reloader.fails = ReloadError("it is damaged")
    await operations.reload_and_log()
    assert reloader.forced == [False]


async def test_process_that_has_counted_nothing_says_why(operations: Operations) -> None:
    assert (await operations.drift()).problem == "no model serves yet"

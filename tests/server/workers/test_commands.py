"""Commands to all workers, with fake workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from polyhead_server.drift.exchange import encode
from polyhead_server.errors import (
    DriftNotAvailableError,
    InternalError,
    ModelNotFoundError,
    NotReadyError,
    ReloadError,
)
from polyhead_server.process_reports import (
    DriftCounts,
    Measure,
    MeasureKind,
    ModelIdentity,
    ReloadResult,
    WorkerStats,
)
from polyhead_server.settings import Settings
from polyhead_server.workers.commands import WorkerCommands
from polyhead_server.workers.ipc import Method, NoParams, NoResult, ReloadParams, Role, WorkerConfig
from polyhead_server.workers.process import WorkerEndedError, WorkerFailedError, WorkerHangsError, WorkerProcess

OLD, NEW = ModelIdentity("old", ()), ModelIdentity("new", ())


def stats_of(process_id: int) -> WorkerStats:
    return WorkerStats(process_id, "m", True, 1.0, 0, 0, 0, 0.0, 0, 0, 0, 0, 0.0, {}, 1, "tickets")


def counts_of(process_id: int) -> dict[str, Any]:
    """Returns 100 texts of label a in the bucket of each of two hours, which differ between processes."""
    measure = Measure("topic", "answers", MeasureKind.SHARES, ("a", "b"), (0.5, 0.5), 400)
    counts = encode(np.array([[100.0, 0.0, 100.0, 0.0]] * 2))
    return {
        "model_id": "m",
        "measures": (measure,),
        "window_s": 7200.0,
        "min_distance": 0.1,
        "numbers": (process_id, process_id + 1),
        "counts": counts,
    }


# A reload first finds out whether the worker answers at all.
PING = ("stats", NoParams())


class FakeWorker:
    """Answers every request, or fails with the reason ``fails`` if it is set.

    Attributes:
        requests: Name and parameters of each request.
        gate: Requests wait for it.
    """

    def __init__(
        self, number: int, fails: str = "", serves: bool = True, drained: bool = False, hangs: bool = False
    ) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.fails = fails
        self.hangs = hangs
        self.config = WorkerConfig(Settings(bundle=Path("x")), drained=drained)
        self.requests: list[tuple[str, Any]] = []
        self.stop_requested = False
        self.serving_since = 1.0 if serves else None
        self.ended = False
        self.counts_nothing_because = ""
        self.serves = serves
        self.gate = asyncio.Event()
        self.gate.set()

    async def wait_until_serving(self) -> bool:
        return self.serves

    async def request(self, method: Method[Any, Any], params: Any, timeout_s: float) -> Any:
        self.requests.append((method.name, params))
        if self.hangs:
            raise WorkerHangsError(f"it did not answer within {timeout_s:g} s")
        await self.gate.wait()
        if self.ended:
            raise WorkerEndedError("it ended")
        if self.fails:
            raise WorkerFailedError(self.fails)
        results: dict[str, Any] = {
            "reload": ReloadResult(self.number, "m", {}, NEW),
            "drain": NoResult(),
            "stats": stats_of(self.number),
            "drift": DriftCounts(self.counts_nothing_because, **counts_of(self.number)),
        }
        return results[method.name]

    @property
    def requested(self) -> list[str]:
        return [name for name, _ in self.requests]


class FakeHealth:
    """Remembers what was reported last."""

    def __init__(self) -> None:
        self.serving = self.alive = False

    async def set(self, *, serving: bool, alive: bool) -> None:
        self.serving, self.alive = serving, alive


def commands_to(*workers: FakeWorker, **settings: Any) -> WorkerCommands:
    serving = {worker.number: cast(WorkerProcess, worker) for worker in workers if worker.serves}
    all_settings = Settings(bundle=Path("x"), workers=max(1, len(workers)), **settings)
    return WorkerCommands(all_settings, cast(set[WorkerProcess], set(workers)), serving)


async def test_reload_reaches_all_workers_in_order() -> None:
    workers = [FakeWorker(number) for number in range(3)]
    results = await commands_to(*workers).reload(force=True)
    assert [result.process_id for result in results] == [0, 1, 2]
    assert [worker.requests for worker in workers] == [[PING, ("reload", ReloadParams(force=True))]] * 3


async def test_drain_and_stats_reach_all_workers() -> None:
    workers = [FakeWorker(number) for number in range(3)]
    commands = commands_to(*workers)
    assert [stats.process_id for stats in await commands.stats()] == [0, 1, 2]
    await commands.drain()
    assert [worker.requests for worker in workers] == [[("stats", NoParams()), ("drain", NoParams())]] * 3


async def test_drift_is_that_of_all_workers_together() -> None:
    workers = [FakeWorker(number) for number in range(3)]
    workers[2].counts_nothing_because = "no model serves yet"
    report = await commands_to(*workers).drift()
    (topic,) = report.measures
    assert (report.texts, topic.observed, topic.texts) == (400, (1.0, 0.0), 400)
    assert all(worker.requested == ["drift"] for worker in workers)


async def test_fronts_are_not_asked_for_drift() -> None:
    engine, front = FakeWorker(0), FakeWorker(1)
    engine.config, front.config = (
        WorkerConfig(Settings(bundle=Path("x")), role=role) for role in (Role.ENGINE, Role.FRONT)
    )
    assert (await commands_to(engine, front).drift()).texts == 200
    assert (engine.requested, front.requested) == (["drift"], [])


async def test_drift_without_counts_states_why(caplog: pytest.LogCaptureFixture) -> None:
    worker = FakeWorker(0)
    worker.counts_nothing_because = "m has no reference"
    with pytest.raises(DriftNotAvailableError, match="m has no reference"):
        await commands_to(worker).drift()
    with pytest.raises(InternalError):
        await commands_to(FakeWorker(0, hangs=True)).drift()
    hanging = await commands_to(FakeWorker(0), FakeWorker(1, hangs=True)).drift()
    assert hanging.texts == 200
    assert "drift failed in worker 1" in caplog.text


async def test_reload_stops_at_the_first_failure(caplog: pytest.LogCaptureFixture) -> None:
    workers = [FakeWorker(0), FakeWorker(1, fails="it is damaged"), FakeWorker(2)]
    with pytest.raises(ReloadError) as caught:
        await commands_to(*workers).reload(force=False)
    assert str(caught.value) == "worker 1: it is damaged. 1 of 3 workers serve the new model"
    assert not workers[2].requests
    assert "reload stopped at worker 1: it is damaged" in caplog.text


async def test_reload_updates_the_identity_that_later_workers_must_match() -> None:
    commands = commands_to(FakeWorker(0))
    commands.identity = OLD
    await commands.reload_and_log()
    assert commands.identity == NEW


async def test_refused_reload_changes_nothing() -> None:
    commands = commands_to(FakeWorker(0, fails="no"))
    commands.identity = OLD
    await commands.reload_and_log()
    assert commands.identity == OLD


async def test_reload_continues_when_its_caller_is_cancelled() -> None:
    """Otherwise a client that gives up would leave workers with different models."""
    workers = [FakeWorker(0), FakeWorker(1)]
    workers[0].gate.clear()
    commands = commands_to(*workers)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(commands.reload(force=False), 0.01)
    assert not workers[1].requests
    workers[0].gate.set()
    async with commands.changing:
        assert workers[1].requested == ["stats", "reload"]
    assert commands.identity == NEW


async def test_reload_skips_workers_that_were_told_to_stop() -> None:
    workers = [FakeWorker(0), FakeWorker(0)]
    workers[0].stop_requested = True
    await commands_to(*workers).reload(force=False)
    assert (workers[0].requested, workers[1].requested) == ([], ["stats", "reload"])


async def test_reload_without_workers_fails() -> None:
    with pytest.raises(ReloadError, match="no worker serves"):
        await commands_to(FakeWorker(0, serves=False)).reload(force=False)


async def test_stats_without_workers_are_not_ready() -> None:
    with pytest.raises(NotReadyError):
        await commands_to(FakeWorker(0, serves=False)).stats()


async def test_drain_is_remembered_for_workers_that_start_later() -> None:
    commands = commands_to(FakeWorker(0, serves=False))
    await commands.drain()
    assert commands.drained


@pytest.mark.parametrize(("started_drained", "requested"), [(False, ["drain"]), (True, [])])
async def test_worker_that_was_starting_during_a_drain_is_drained(started_drained: bool, requested: list[str]) -> None:
    worker = FakeWorker(0, drained=started_drained)
    commands = commands_to(worker)
    commands.drained = True
    await commands.add(cast(WorkerProcess, worker))
    assert worker.requested == requested


async def test_stats_leave_out_a_worker_that_ends_meanwhile() -> None:
    workers = [FakeWorker(0), FakeWorker(1)]
    workers[1].ended = True
    assert [stats.process_id for stats in await commands_to(*workers).stats()] == [0]


async def test_stats_leave_out_a_worker_that_hangs_and_the_log_names_it(caplog: pytest.LogCaptureFixture) -> None:
    workers = [FakeWorker(0), FakeWorker(1, fails="it did not answer within 3 s")]
    assert [stats.process_id for stats in await commands_to(*workers).stats()] == [0]
    assert "stats failed in worker 1: it did not answer within 3 s" in caplog.text


async def test_stats_fail_if_every_worker_hangs() -> None:
    with pytest.raises(InternalError):
        await commands_to(FakeWorker(0, fails="it did not answer within 3 s")).stats()


async def test_drain_fails_if_a_worker_hangs_and_drains_the_others(caplog: pytest.LogCaptureFixture) -> None:
    workers = [FakeWorker(0, fails="it did not answer within 3 s"), FakeWorker(1)]
    commands = commands_to(*workers)
    with pytest.raises(InternalError):
        await commands.drain()
    assert commands.drained
    assert workers[1].requested == ["drain"]
    assert "drain failed in worker 0: it did not answer within 3 s" in caplog.text


async def test_worker_that_hangs_does_not_hold_up_a_reload() -> None:
    workers = [FakeWorker(0), FakeWorker(1, hangs=True), FakeWorker(2)]
    with pytest.raises(ReloadError) as caught:
        await commands_to(*workers).reload(force=False)
    assert str(caught.value) == "worker 1: it did not answer within 3 s. 1 of 3 workers serve the new model"
    assert [worker.requested for worker in workers] == [["stats", "reload"], ["stats"], []]


async def test_reloads_requested_while_one_runs_share_the_next() -> None:
    worker = FakeWorker(0)
    worker.gate.clear()
    commands = commands_to(worker)
    first = asyncio.create_task(commands.reload(force=False))
    while not worker.requests:
        await asyncio.sleep(0)
    others = [asyncio.create_task(commands.reload(force=False)) for _ in range(20)]
    await asyncio.sleep(0)
    worker.gate.set()
    await asyncio.gather(first, *others)
    assert worker.requested.count("reload") == 2


@pytest.mark.parametrize(
    ("serves", "drained", "stopping", "expected"),
    [
        (False, False, False, (False, False)),
        (True, False, False, (True, True)),
        (True, True, False, (False, True)),
        (True, False, True, (False, False)),
    ],
)
async def test_server_is_alive_while_a_worker_serves(
    serves: bool, drained: bool, stopping: bool, expected: tuple[bool, bool]
) -> None:
    commands, health = commands_to(FakeWorker(0, serves=serves)), FakeHealth()
    commands.health, commands.drained, commands.stopping = health, drained, stopping
    await commands.update_health()
    assert (health.serving, health.alive) == expected


async def test_drain_changes_the_health() -> None:
    commands, health = commands_to(FakeWorker(0)), FakeHealth()
    commands.health = health
    await commands.update_health()
    assert (health.serving, health.alive) == (True, True)
    await commands.drain()
    assert (health.serving, health.alive) == (False, True)


async def test_name_must_be_that_of_the_model() -> None:
    workers = [FakeWorker(0), FakeWorker(1)]
    commands = commands_to(*workers)
    assert len(await commands.stats("tickets")) == 2
    assert len(await commands.reload(force=False, model="tickets")) == 2
    for command in (commands.stats("reviews"), commands.reload(force=True, model="reviews")):
        with pytest.raises(ModelNotFoundError, match="model 'tickets'"):
            await command
    assert [params for name, params in workers[0].requests if name == "reload"] == [ReloadParams(force=False)]

"""Commands of a shadow or a canary to all processes that answer calls, with fake workers."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
from polyhead_server.candidate.parameters import Answers, CanaryCounts, CanaryParams, CandidateBundle, SamplingParams
from polyhead_server.errors import CandidateError, ReloadError
from polyhead_server.process_reports import ModelIdentity, ReloadResult
from polyhead_server.settings import Settings
from polyhead_server.workers.candidate_commands import CandidateCommands
from polyhead_server.workers.commands import WorkerCommands
from polyhead_server.workers.ipc import Method, NoResult, Role, WorkerConfig
from polyhead_server.workers.process import WorkerFailedError, WorkerProcess

pytestmark = pytest.mark.timeout(20)
SAMPLING, CANARY = SamplingParams("/s", 0.5), CanaryParams("/c", 0.1)


class FakeWorker:
    """Answers every request; fails with ``fails`` if it is set."""

    def __init__(self, number: int, role: Role = Role.WORKER, *, serves: bool = True) -> None:
        self.number, self.name = number, f"{role} {number}"
        self.config = WorkerConfig(Settings(bundle=Path("served")), role=role)
        self.fails = ""
        self.stop_requested = False
        self.serving_since = 1.0 if serves else None
        self.requests: list[tuple[str, Any]] = []

    async def wait_until_serving(self) -> bool:
        return True

    async def request(self, method: Method[Any, Any], params: Any, timeout_s: float) -> Any:
        del timeout_s
        await asyncio.sleep(0)
        if method.name == "stats":
            return None
        self.requests.append((method.name, params))
        if self.fails:
            raise WorkerFailedError(self.fails)
        results = {
            "canary_counts": CanaryCounts(Answers(self.number)),
            "promote": ReloadResult(self.number, "new", {}, ModelIdentity("new", ())),
            "reload": ReloadResult(self.number, "old", {}, ModelIdentity("old", ())),
        }
        return results.get(method.name, NoResult())


def server_of(*workers: FakeWorker) -> tuple[WorkerCommands, CandidateCommands]:
    settings = Settings(bundle=Path("served"))
    found = cast("set[WorkerProcess]", set(workers))
    commands = WorkerCommands(settings, found, {one.number: one for one in found})
    return commands, commands.candidate


async def test_only_processes_that_answer_calls_sample() -> None:
    engine, front, starting = FakeWorker(0, Role.ENGINE), FakeWorker(1, Role.FRONT), FakeWorker(2, serves=False)
    _, processes = server_of(engine, front, starting)
    await processes.sample(SAMPLING)
    await processes.set_canary(CANARY)
    assert front.requests == [("sample", SAMPLING), ("set_canary", CANARY)]
    assert engine.requests == starting.requests == []


async def test_process_that_starts_later_joins() -> None:
    first, late = FakeWorker(0), FakeWorker(1)
    commands, processes = server_of(first)
    await processes.sample(SAMPLING)
    await processes.set_canary(CANARY)
    await commands.add(cast(WorkerProcess, late))
    assert late.requests == [("sample", SAMPLING), ("set_canary", CANARY)]
    await processes.sample(SamplingParams())
    await processes.set_canary(CanaryParams())
    latest = FakeWorker(2)
    await commands.add(cast(WorkerProcess, latest))
    assert latest.requests == []


async def test_process_that_fails_in_one_part_joins_in_the_other(caplog: pytest.LogCaptureFixture) -> None:
    first, late = FakeWorker(0), FakeWorker(1)
    commands, processes = server_of(first)
    await processes.sample(SAMPLING)
    await processes.set_canary(CANARY)
    late.fails = "the candidate does not answer"
    await commands.add(cast(WorkerProcess, late))
    assert late.requests == [("sample", SAMPLING), ("set_canary", CANARY)]
    assert "sample failed in worker 1: the candidate does not answer" in caplog.text


async def test_process_that_is_being_stopped_ends_its_canary_and_is_not_required() -> None:
    worker, old = FakeWorker(0), FakeWorker(1)
    old.stop_requested = True
    _, processes = server_of(worker, old)
    await processes.set_canary(CanaryParams())
    assert old.requests == [("set_canary", CanaryParams())]
    old.fails = "it hangs"
    await processes.set_canary(CANARY)


async def test_start_requires_all_processes_and_end_none() -> None:
    good, bad = FakeWorker(0), FakeWorker(1)
    bad.fails = "it hangs"
    _, processes = server_of(good, bad)
    with pytest.raises(CandidateError, match="sample failed in worker 1: it hangs"):
        await processes.sample(SAMPLING)
    await processes.sample(SamplingParams())
    await processes.drain_canary()
    assert await processes.canary_counts() == [CanaryCounts(Answers(0))]


async def test_promotion_reaches_all_workers_and_those_that_start_later() -> None:
    workers = [FakeWorker(0), FakeWorker(1)]
    commands, processes = server_of(*workers)
    candidate = CandidateBundle(Path("new"), "d")
    assert processes.bundle == Path("served")
    results = await processes.promote(candidate, force=True)
    assert [one.process_id for one in results] == [0, 1]
    assert [params.candidate for worker in workers for _, params in worker.requests] == [candidate] * 2
    # The bundle of a worker that is started from now on, and what it must be compatible with.
    assert (commands.bundle, processes.bundle, commands.identity) == (
        Path("new"),
        Path("new"),
        ModelIdentity("new", ()),
    )
    await commands.reload(force=False)
    assert (commands.bundle, processes.bundle) == (None, Path("served"))


async def test_promotion_reaches_workers_that_start_with_the_old_bundle_meanwhile() -> None:
    first, early, late = FakeWorker(0), FakeWorker(1), FakeWorker(2)
    late.config = dataclasses.replace(late.config, bundle=Path("new"))
    commands, processes = server_of(first)

    async def start_others() -> bool:
        # While the first is replaced, others have died and start again.
        cast("set[WorkerProcess]", commands._workers).update(cast("list[WorkerProcess]", [early, late]))
        return True

    first.wait_until_serving = start_others  # type: ignore[method-assign]
    results = await processes.promote(CandidateBundle(Path("new"), "d"), force=True)
    assert [one.process_id for one in results] == [0, 1]
    # It has loaded the new bundle.
    assert late.requests == []


async def test_promotion_stops_at_the_first_worker_that_refuses() -> None:
    workers = [FakeWorker(0), FakeWorker(1)]
    workers[0].fails = "it has other labels"
    commands, processes = server_of(*workers)
    with pytest.raises(ReloadError, match="it has other labels"):
        await processes.promote(CandidateBundle(Path("new"), "d"), force=False)
    assert workers[1].requests == []
    assert commands.bundle is None

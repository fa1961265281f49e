"""The candidate of a server: what may begin when, and what each end leaves, with fake processes."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from polyhead_server.candidate.description import Description
from polyhead_server.candidate.limits import CanaryLimits
from polyhead_server.candidate.parameters import (
    Answers,
    CanaryCounts,
    CanaryParams,
    CandidateBundle,
    EngineConfig,
    EngineStart,
    SamplingParams,
    ShadowConfig,
)
from polyhead_server.candidate.process import CandidateProcess
from polyhead_server.candidate.report import ShadowReport
from polyhead_server.errors import CandidateError, ReloadError
from polyhead_server.lifecycle import candidate_runs
from polyhead_server.lifecycle.candidate_manager import CandidateManager
from polyhead_server.observability.candidate_metrics import CandidateCollector
from polyhead_server.process_reports import ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings

from tests.support.polling import until

pytestmark = pytest.mark.timeout(60)
IDENTITY = ModelIdentity("space", ())
DESCRIPTION = Description("", "new-1", "d" * 64, "space", {"topic": "t"}, served_model_id="old-1")


class FakeProcess:
    """A candidate's process that is ready at once.

    Attributes:
        config: What it was started with.
        start: What it reports.
        report: What it answers; None for a process without compute.
        stopped: Whether it was told to end.
    """

    def __init__(self, config: Any, start: Any, loaded: asyncio.Event) -> None:
        self.config, self.start = config, start
        self._loaded = loaded
        self.report: ShadowReport | None = ShadowReport(answered=10, selected=5, compared=5)
        self.stopped = False
        self._on_end: Callable[[int], object] = lambda _: None

    async def receive(self, kind: type[Any], timeout_s: float) -> Any:
        del kind, timeout_s
        await self._loaded.wait()
        return self.start

    async def request(self, kind: type[Any]) -> Any:
        del kind
        if self.report is None:
            raise CandidateError("no compute is left")
        return self.report

    def on_end(self, call: Callable[[int], object]) -> None:
        self._on_end = call

    def end(self, code: int) -> None:
        self._on_end(code)

    async def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


class FakeServer:
    """The processes of a server.

    Attributes:
        done: What was requested, in order.
        counts: The counts during a canary.
        counted: Whether it has counted; calls wait while it has not.
        defect: Raised in place of counts, if it is set.
        fails: Raised by a promotion, if it is set.
    """

    bundle = Path("/served")
    identity: ModelIdentity | None = IDENTITY

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.counts = CanaryCounts()
        self.counted = asyncio.Event()
        self.counted.set()
        self.defect: Exception | None = None
        self.fails: Exception | None = None
        self.refuses_sampling = False

    async def stats(self) -> list[WorkerStats]:
        return [WorkerStats(1, "old-1", True, 1.0, 0, 0, 0, 0.0, 0, 0, 0, 0, 0.0, {}, 1)]

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> list[ReloadResult]:
        self.done.append((candidate, force))
        if self.fails:
            raise self.fails
        return [ReloadResult(1, "new-1", {}, IDENTITY)]

    async def sample(self, params: SamplingParams) -> None:
        self.done.append(params)
        if self.refuses_sampling and params.socket:
            raise CandidateError("worker 1 hangs")

    async def set_canary(self, params: CanaryParams) -> None:
        self.done.append(params)

    async def drain_canary(self) -> None:
        self.done.append("drained")

    async def canary_counts(self) -> list[CanaryCounts]:
        await self.counted.wait()
        if self.defect:
            raise self.defect
        return [self.counts]


class World:
    """A manager between fakes.

    Attributes:
        processes: The processes that were started.
        next_description: What the next one reports.
        next_identity: Identity of the next candidate.
        loaded: Whether processes are ready; those that start wait while they are not.
    """

    def __init__(self, settings: Settings) -> None:
        self.server = FakeServer()
        self.metrics = CandidateCollector()
        self.manager = CandidateManager(settings, self.server, self.metrics.add())
        self.processes: list[FakeProcess] = []
        self.next_description = DESCRIPTION
        self.next_identity: ModelIdentity | None = IDENTITY
        self.loaded = asyncio.Event()
        self.loaded.set()

    async def start(self, module: str, config: Any) -> CandidateProcess:
        del module
        start: Any = self.next_description
        if isinstance(config, EngineConfig):
            start = EngineStart(self.next_description, self.next_identity)
        self.processes.append(FakeProcess(config, start, self.loaded))
        return cast(CandidateProcess, self.processes[-1])

    async def shadow(self, bundle: str = "/new", share: float = 0.1) -> Any:
        return await self.manager.shadow(Path(bundle), share, 0)

    async def canary(self, bundle: str | None = "/new", force: bool = False, **limits: Any) -> Any:
        return await self.manager.canary(bundle and Path(bundle), 0.05, CanaryLimits(**limits), force=force)  # type: ignore[arg-type]

    def samples(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.metrics.collect()
            for sample in family.samples
        }


@pytest.fixture
async def world(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(settings())
    monkeypatch.setattr(CandidateProcess, "start", world.start)
    monkeypatch.setattr(candidate_runs.CanaryRun, "interval_s", 0.01)
    monkeypatch.setattr(candidate_runs.ShadowRun, "interval_s", 0.01)
    yield world
    await world.manager.close()


async def test_shadow_samples_the_texts(world: World) -> None:
    status = await world.shadow()
    config = world.processes[0].config
    assert isinstance(config, ShadowConfig)
    assert (config.candidate.path, config.served, config.only_when_idle) == (Path("/new"), Path("/served"), True)
    assert world.server.done == [SamplingParams(str(config.socket), 0.1)]
    assert (status.description.model_id, status.served_model_id) == ("new-1", "old-1")
    assert (await world.manager.compare()).shadow.report.compared == 5  # type: ignore[union-attr]
    assert world.samples()["polyhead_candidate_info", "new-1", "shadow"] == 1


async def test_bad_bundle_is_refused_and_leaves_nothing(world: World) -> None:
    world.next_description = Description("/new/model.onnx: has another SHA-256")
    with pytest.raises(CandidateError, match="another SHA-256"):
        await world.shadow()
    assert world.processes[0].stopped
    assert not world.processes[0].config.socket.parent.exists()
    with pytest.raises(CandidateError, match="there is no candidate"):
        await world.manager.compare()
    world.next_description = DESCRIPTION
    await world.shadow()


async def test_path_that_is_too_long_for_a_socket_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 107)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for begin in (world.shadow(), world.canary()):
        with pytest.raises(CandidateError, match="too long; set TMPDIR to a shorter one"):
            await begin
    assert not world.processes
    assert not list(folder.iterdir())


async def test_served_bundle_that_was_replaced_on_disk_is_noticed(world: World) -> None:
    world.next_description = dataclasses.replace(DESCRIPTION, served_model_id="other-2")
    with pytest.raises(CandidateError, match="replaced on disk; reload"):
        await world.shadow()


async def test_process_that_cannot_sample_ends_the_shadow_everywhere(world: World) -> None:
    world.server.refuses_sampling = True
    with pytest.raises(CandidateError, match="worker 1 hangs"):
        await world.shadow()
    assert world.server.done[-1] == SamplingParams()
    assert world.processes[0].stopped


async def test_second_candidate_is_refused(world: World) -> None:
    await world.shadow()
    for begin in (world.shadow("/newer"), world.shadow("/new"), world.canary("/newer")):
        with pytest.raises(CandidateError, match="new-1 is the candidate already"):
            await begin
    assert len(world.processes) == 1


async def test_candidate_without_compute_keeps_its_last_report(world: World) -> None:
    await world.shadow()
    assert (await world.manager.compare()).shadow
    world.processes[0].report = None
    status = (await world.manager.compare()).shadow
    assert status
    assert status.report.compared == 5


async def test_candidate_process_that_ends_stops_the_sampling(world: World) -> None:
    await world.shadow()
    world.processes[0].end(-9)
    await until(lambda: world.server.done[-1] == SamplingParams())
    status = (await world.manager.compare()).shadow
    assert status
    assert "ended with code -9" in status.failure
    await world.manager.discard()
    await world.shadow("/newer")


async def test_promotion_serves_exactly_what_was_compared(world: World) -> None:
    await world.shadow()
    (result,) = await world.manager.promote(force=True)
    assert result.model_id == "new-1"
    assert world.server.done[1:] == [(CandidateBundle(Path("/new"), "d" * 64), True), SamplingParams()]
    assert world.processes[0].stopped
    assert not any(name != "polyhead_canary_rollbacks_total" for name, *_ in world.samples())


async def test_refused_promotion_leaves_the_candidate(world: World) -> None:
    await world.shadow()
    world.server.fails = ReloadError("it has other labels")
    with pytest.raises(ReloadError):
        await world.manager.promote(force=False)
    assert (await world.manager.compare()).shadow
    assert not world.processes[0].stopped


async def test_without_a_candidate_nothing_is_promoted_or_discarded(world: World) -> None:
    for work in (world.manager.promote(force=True), world.manager.discard(), world.canary(None)):
        with pytest.raises(CandidateError, match="there is no candidate"):
            await work
    assert not world.server.done


async def test_canary_of_the_compared_candidate_continues_the_comparison(world: World) -> None:
    await world.shadow()
    status = await world.canary(None)
    assert status.shadow
    assert status.canary
    assert world.server.done[-1] == CanaryParams(str(world.processes[1].config.socket), 0.05)
    assert world.samples()["polyhead_candidate_info", "new-1", "canary"] == 1
    await world.manager.discard()
    assert world.server.done[2:] == [CanaryParams(), "drained", SamplingParams()]
    assert all(process.stopped for process in world.processes)


async def test_incompatible_canary_requires_force(world: World) -> None:
    world.next_identity = ModelIdentity("another", ())
    with pytest.raises(CandidateError, match="its embedding space another differs"):
        await world.canary()
    assert world.processes[0].stopped
    assert (await world.canary(force=True)).canary


async def test_canary_of_a_bundle_that_has_changed_is_refused(world: World) -> None:
    await world.shadow()
    world.next_description = dataclasses.replace(DESCRIPTION, digest="e" * 64)
    with pytest.raises(CandidateError, match="has changed"):
        await world.canary(None)


def counts(failed: int) -> CanaryCounts:
    return CanaryCounts(Answers(1000), Answers(1000, {"INTERNAL": failed} if failed else {}))


async def test_canary_that_fails_is_rolled_back(world: World) -> None:
    await world.canary()
    world.server.counts = counts(failed=0)
    await until(lambda: world.samples().get(("polyhead_canary_texts_total", "candidate", "success")) == 1000)
    assert world.server.done[1:] == []
    world.server.counts = counts(failed=50)
    await until(lambda: world.processes[0].stopped)
    assert world.server.done[1:] == [CanaryParams(), "drained"]
    status = (await world.manager.compare()).canary
    assert status
    assert "5.00% of its texts failed (INTERNAL)" in status.rollback
    assert world.samples()["polyhead_canary_rollbacks_total",] == 1
    # The candidate stays for a look at it, and may try again.
    assert (await world.canary(None)).canary


async def test_canary_whose_engine_ends_is_rolled_back_at_once(world: World) -> None:
    await world.canary()
    world.processes[0].end(-11)
    await until(lambda: CanaryParams(lost=True) in world.server.done)
    status = (await world.manager.compare()).canary
    assert status
    assert "ended with code -11" in status.rollback


async def test_canary_is_rolled_back_while_a_comparison_is_loading(world: World) -> None:
    await world.canary()
    world.loaded.clear()
    loading = asyncio.create_task(world.shadow())
    await until(lambda: len(world.processes) == 2)
    world.processes[0].end(-11)
    await until(lambda: world.processes[0].stopped)
    assert CanaryParams(lost=True) in world.server.done
    assert not loading.done()
    world.loaded.set()
    status = await loading
    assert "ended with code -11" in status.canary.rollback
    assert status.shadow


async def test_counts_of_a_canary_that_ends_meanwhile_stay(world: World) -> None:
    await world.canary()
    world.server.counts = counts(failed=0)
    assert (await world.manager.compare()).canary.candidate.texts == 1000  # type: ignore[union-attr]
    world.server.counted.clear()
    comparing = asyncio.create_task(world.manager.compare())
    await asyncio.sleep(0)
    world.processes[0].end(-11)
    await until(lambda: world.processes[0].stopped)
    world.server.counts = CanaryCounts()
    world.server.counted.set()
    status = (await comparing).canary
    assert status
    assert (bool(status.rollback), status.candidate.texts) == (True, 1000)


async def test_unexpected_error_does_not_end_the_watch_over_a_canary(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.defect = RuntimeError("a defect")
    await world.canary()
    await until(lambda: "a change of the candidate failed" in caplog.text)
    world.server.counts = counts(failed=50)
    world.server.defect = None
    await until(lambda: world.processes[0].stopped)


async def test_caller_that_goes_does_not_stop_a_promotion(world: World) -> None:
    await world.shadow()
    promotion = asyncio.create_task(world.manager.promote(force=False))
    await asyncio.sleep(0)
    promotion.cancel()
    await until(lambda: world.processes[0].stopped)

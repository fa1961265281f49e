"""The candidate of a server: starts its processes, compares, promotes, discards, and rolls a canary back.

::

                 +--shadow--> compared on live texts --+
    no candidate-+                                     +--promote--> served model
         ^       +--canary--> answers a share of calls +
         |                     |  errors, latency      |
         +--------discard------+-----------------------+
                               v
                          rolled back: the served model answers all calls again
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from polyhead_server.candidate.description import Description
from polyhead_server.candidate.figures import figures_of
from polyhead_server.candidate.limits import CanaryLimits
from polyhead_server.candidate.parameters import (
    CanaryCounts,
    CanaryParams,
    CandidateBundle,
    EngineConfig,
    EngineStart,
    SamplingParams,
    ShadowConfig,
)
from polyhead_server.candidate.status import CandidateStatus
from polyhead_server.errors import CandidateError, InternalError, ServerError
from polyhead_server.observability.candidate_metrics import CandidateFigures, CandidateMetrics
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.process_reports import ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings

from .candidate_runs import CanaryRun, Candidate, ShadowRun
from .candidate_start import check_engine, check_shadow, refused, socket_folder, start_process
from .uninterrupted import Uninterrupted

logger = logging.getLogger(__name__)

R = TypeVar("R")


class ServingProcesses(Protocol):
    """The processes of a server that answer calls. Each method raises a ``ServerError`` that states why it failed."""

    @property
    def bundle(self) -> Path:
        """Directory of the bundle of the served model."""

    @property
    def identity(self) -> ModelIdentity | None:
        """Identity of the served model; None if none serves yet."""

    async def stats(self) -> list[WorkerStats]:
        """Returns the statistics of every process."""

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> list[ReloadResult]:
        """Loads another bundle in every process and serves it."""

    async def sample(self, params: SamplingParams) -> None:
        """Sends a share of the texts of every process to a candidate's process."""

    async def set_canary(self, params: CanaryParams) -> None:
        """Lets a candidate's engine answer a share of the calls of every process."""

    async def drain_canary(self) -> None:
        """Waits until the engine of a canary that has ended has answered what it had begun."""

    async def canary_counts(self) -> list[CanaryCounts]:
        """Returns the counts of every process since the canary began."""


class CandidateManager:
    """At most one candidate. Event loop only."""

    def __init__(self, settings: Settings, processes: ServingProcesses, metrics: CandidateMetrics) -> None:
        """Begins without a candidate.

        Args:
            settings: The server's.
            processes: Answer the calls.
            metrics: Receive the state of the candidate.
        """
        self._settings = settings
        self._processes = processes
        self._metrics = metrics
        self._candidate: Candidate | None = None
        # One change at a time.
        self._lock = asyncio.Lock()
        self._changes = Uninterrupted()

    async def shadow(
        self, bundle: Path, share: float, keep_texts: int, *, only_when_idle: bool = True
    ) -> CandidateStatus:
        """Loads a candidate and compares it on a share of the live texts from now on.

        Args:
            bundle: Its directory.
            share: Share of the texts, 0 to 1.
            keep_texts: Number of changed texts to keep of each head.
            only_when_idle: Whether the candidate computes only while nothing else does.

        Raises:
            CandidateError: It cannot be loaded, or there is another candidate; the served model is unchanged.
        """
        return await self._changes.run(_logged(self._shadow(bundle, share, keep_texts, only_when_idle)))

    async def canary(self, bundle: Path | None, share: float, limits: CanaryLimits, *, force: bool) -> CandidateStatus:
        """Lets a candidate answer a share of the calls from now on.

        Args:
            bundle: Its directory; None for the candidate that there is.
            share: Share of the keys, 0 to 1.
            limits: At which it is rolled back.
            force: Accept a candidate that is incompatible with the served model, see ``compatibility``.

        Raises:
            CandidateError: It cannot be loaded, is incompatible, or there is another candidate.
        """
        return await self._changes.run(_logged(self._start_canary(bundle, share, limits, force=force)))

    async def compare(self) -> CandidateStatus:
        """Returns the state of the candidate.

        Raises:
            CandidateError: There is none.
        """
        candidate = self._require()
        if candidate.shadow:
            await candidate.shadow.update()
        if run := candidate.canary:
            await self._update_counts(run)
        return await self._status(candidate)

    async def promote(self, *, force: bool) -> list[ReloadResult]:
        """Serves the candidate, as a reload does, and ends the comparison.

        Args:
            force: Accept a candidate that is incompatible with the served model, see ``compatibility``.

        Raises:
            CandidateError: There is none.
            ReloadError: The served model stays, and so does the candidate; states why.
        """
        return await self._changes.run(_logged(self._promote(force=force)))

    async def discard(self) -> None:
        """Ends the candidate's processes.

        Raises:
            CandidateError: There is none.
        """
        await self._changes.run(_logged(self._discard()))

    async def close(self) -> None:
        """Ends everything."""
        self._changes.cancel()
        if self._candidate:
            for run in (self._candidate.shadow, self._candidate.canary):
                if run:
                    run.process.kill()
                    shutil.rmtree(run.folder, ignore_errors=True)

    async def _shadow(self, bundle: Path, share: float, keep_texts: int, only_when_idle: bool) -> CandidateStatus:
        async with self._lock:
            if self._candidate and (self._candidate.shadow or not _is_same(self._candidate, bundle)):
                raise _occupied(self._candidate)
            served = {one.model_id for one in await self._processes.stats()}
            candidate = CandidateBundle(_resolved(bundle), self._candidate.bundle.digest if self._candidate else "")
            with socket_folder() as (folder, socket):
                config = ShadowConfig(
                    self._settings, candidate, self._processes.bundle, socket, keep_texts, only_when_idle
                )
                process, description = await start_process(config, Description)
                try:
                    check_shadow(description, served)
                    await self._processes.sample(SamplingParams(str(socket), share))
                except BaseException:
                    await self._processes.sample(SamplingParams())
                    await process.stop()
                    raise
            run = ShadowRun(process, folder, share)
            current = self._candidate or Candidate(_verified(candidate, description), description)
            current.shadow, self._candidate = run, current
            process.on_end(lambda code: self._in_background(self._on_shadow_end(current, run, code)))
            self._in_background(self._watch_shadow(current, run))
            logger.info("comparing candidate %s on %.4g of the texts", description.model_id, share)
            return await self._status(current)

    async def _start_canary(
        self, bundle: Path | None, share: float, limits: CanaryLimits, *, force: bool
    ) -> CandidateStatus:
        async with self._lock:
            candidate = self._candidate
            if bundle is None and candidate is None:
                raise refused("there is no candidate; name its bundle")
            if candidate and ((bundle and not _is_same(candidate, bundle)) or candidate.running_canary):
                raise _occupied(candidate)
            wanted = candidate.bundle if candidate else CandidateBundle(_resolved(bundle or Path()))
            with socket_folder() as (folder, socket):
                process, start = await start_process(EngineConfig(self._settings, wanted.path, socket), EngineStart)
                try:
                    check_engine(start, wanted, self._processes.identity, force=force)
                    await self._processes.set_canary(CanaryParams(str(socket), share))
                except BaseException:
                    await self._processes.set_canary(CanaryParams(lost=True))
                    await process.stop()
                    raise
            run = CanaryRun(process, folder, share, limits)
            current = candidate or Candidate(_verified(wanted, start.description), start.description)
            current.canary, self._candidate = run, current
            process.on_end(lambda code: self._in_background(self._on_engine_end(current, run, code)))
            self._in_background(self._watch_canary(current, run))
            logger.info("candidate %s answers %.4g of the callers", start.description.model_id, share)
            return await self._status(current)

    async def _promote(self, *, force: bool) -> list[ReloadResult]:
        async with self._lock:
            candidate = self._require()
            results = await self._processes.promote(candidate.bundle, force=force)
            logger.info("candidate %s was promoted", candidate.model_id)
            await self._end(candidate)
            return results

    async def _discard(self) -> None:
        async with self._lock:
            candidate = self._require()
            await self._end(candidate)
            logger.info("candidate %s was discarded", candidate.model_id)

    async def _end(self, candidate: Candidate) -> None:
        """Ends what runs for the candidate."""
        self._candidate = None
        if run := candidate.running_canary:
            await self._end_canary(run, lost=False)
        if candidate.shadow:
            await self._processes.sample(SamplingParams())
            await candidate.shadow.stop()
        self._metrics.figures = CandidateFigures()

    async def _end_canary(self, run: CanaryRun, *, lost: bool) -> None:
        await self._processes.set_canary(CanaryParams(lost=lost))
        await self._processes.drain_canary()
        await run.stop()

    async def _roll_back(self, candidate: Candidate, run: CanaryRun, reason: str, *, lost: bool) -> None:
        """Ends a canary. Does not wait for a change in progress, such as the load of a comparison."""
        if run.rollback or candidate is not self._candidate:
            return
        run.rollback = reason
        logger.error("the canary of candidate %s is rolled back: %s", candidate.model_id, reason)
        self._metrics.rollbacks += 1
        await self._end_canary(run, lost=lost)
        self._show(candidate)

    async def _watch_canary(self, candidate: Candidate, run: CanaryRun) -> None:
        while candidate is self._candidate and not run.rollback:
            await asyncio.sleep(run.interval_s)
            with contextlib.suppress(ServerError):
                await _logged(self._check_canary(candidate, run))

    async def _check_canary(self, candidate: Candidate, run: CanaryRun) -> None:
        if await self._update_counts(run) and (reason := run.exceeded()):
            await self._roll_back(candidate, run, reason, lost=False)
        self._show(candidate)

    async def _watch_shadow(self, candidate: Candidate, run: ShadowRun) -> None:
        while candidate is self._candidate and not run.failure:
            await asyncio.sleep(run.interval_s)
            with contextlib.suppress(ServerError):
                await _logged(self._check_shadow(candidate, run))

    async def _check_shadow(self, candidate: Candidate, run: ShadowRun) -> None:
        await run.update()
        self._show(candidate)

    async def _update_counts(self, run: CanaryRun) -> bool:
        """Looks at the counts of a canary; returns False, and keeps the last ones, once it has ended."""
        if not run.rollback:
            counts = await self._processes.canary_counts()
            # Those of a canary that has ended meanwhile are 0.
            if not run.rollback:
                run.counts = counts
                return True
        return False

    async def _on_shadow_end(self, candidate: Candidate, run: ShadowRun, code: int) -> None:
        async with self._lock:
            if candidate is self._candidate:
                run.failure = f"its process has ended with code {code}"
                logger.error("the comparison of candidate %s stops: %s", candidate.model_id, run.failure)
                await self._processes.sample(SamplingParams())
                self._show(candidate)

    async def _on_engine_end(self, candidate: Candidate, run: CanaryRun, code: int) -> None:
        await self._roll_back(candidate, run, f"its engine has ended with code {code}", lost=True)

    async def _status(self, candidate: Candidate) -> CandidateStatus:
        """Returns the state of the candidate, which the metrics show from now on."""
        self._show(candidate)
        served = sorted({one.model_id for one in await self._processes.stats()})
        return candidate.status(", ".join(served))

    def _show(self, candidate: Candidate) -> None:
        """Lets the metrics show the state of the candidate, for which no process is asked."""
        if candidate is self._candidate:
            self._metrics.figures = figures_of(candidate.status())

    def _require(self) -> Candidate:
        if self._candidate is None:
            raise CandidateError("there is no candidate; polyhead admin shadow BUNDLE loads one")
        return self._candidate

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._changes.start(_logged(work))


async def _logged(work: Coroutine[Any, Any, R]) -> R:
    """Runs a change; logs an unexpected error, which no caller may be left to see."""
    try:
        return await work
    except ServerError:
        raise
    except Exception as error:
        exit_if_out_of_memory(error)
        raise InternalError.logged("a change of the candidate failed", error) from error


def _occupied(candidate: Candidate) -> CandidateError:
    return refused(f"{candidate.model_id} is the candidate already; promote or discard it first")


def _resolved(bundle: Path) -> Path:
    # A link may be switched to another bundle later.
    return bundle.resolve()


def _is_same(candidate: Candidate, bundle: Path) -> bool:
    return candidate.bundle.path == _resolved(bundle)


def _verified(bundle: CandidateBundle, description: Description) -> CandidateBundle:
    return dataclasses.replace(bundle, digest=description.digest)

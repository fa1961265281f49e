"""Commands to all workers: reload, drain, statistics. The admin service and the signals of the supervisor use them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from polyhead_server.candidate.parameters import CandidateBundle
from polyhead_server.errors import InternalError, ModelNotFoundError, NotReadyError, ReloadError
from polyhead_server.lifecycle.reload_queue import ReloadQueue
from polyhead_server.lifecycle.uninterrupted import Uninterrupted
from polyhead_server.process_reports import ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings

from . import ipc
from .candidate_commands import CandidateCommands
from .ipc import Method, NoParams, PromoteParams, ReloadParams, Role
from .process import WorkerFailedError, WorkerHangsError, WorkerProcess, request_all

if TYPE_CHECKING:
    from polyhead_server.drift.report import DriftReport

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")

# Seconds in which a worker must answer a request that requires no work. A worker that is stopped or hangs must not hold
# up an operator.
_RESPONSE_TIMEOUT_S = 3.0
# Seconds beyond --start-timeout-s after which a worker does not answer a reload: it refuses it by itself before that.
_RELOAD_GRACE_S = 15.0


class HealthReporter(Protocol):
    """The health service of the supervisor."""

    async def set(self, *, serving: bool, alive: bool) -> None:
        """Sets what is reported."""


class WorkerCommands:
    """Commands to all workers, and the state that workers started later must share. Backend of the admin service.

    Attributes:
        identity: Identity of the serving model; None if no worker serves yet.
        drained: Whether an operator has drained the server.
        bundle: The bundle that the server has promoted to; None for that of the settings.
        candidate: Commands of a shadow or canary.
        stopping: Whether the server is shutting down.
        health: Health service of the supervisor; None without an admin service.
        changing: Held while a model or a worker is being replaced, so that this happens one at a time.
    """

    def __init__(self, settings: Settings, workers: Set[WorkerProcess], serving: Mapping[int, WorkerProcess]) -> None:
        """Takes the supervisor's live collections of workers.

        Args:
            settings: Settings of the server.
            workers: All processes that have not ended.
            serving: The worker that serves in each slot, by number.
        """
        self.identity: ModelIdentity | None = None
        self.drained = False
        self.bundle: Path | None = None
        self.candidate = CandidateCommands(settings, self, self._answering)
        self.stopping = False
        self.health: HealthReporter | None = None
        self.changing = asyncio.Lock()
        self._settings = settings
        self._workers = workers
        self._serving = serving
        self._uninterrupted = Uninterrupted()
        self._reloads = ReloadQueue(self._reload)

    async def reload(self, *, force: bool, model: str = "") -> list[ReloadResult]:
        """Reloads one worker after the other and stops at the first failure.

        The reload continues if the caller is cancelled: otherwise only some of the workers might serve the new model.
        Requests that come while a reload runs share the next one.

        Args:
            force: Accept a model that is incompatible with the serving one.
            model: Name of the model; empty for the one that there is.

        Raises:
            ModelNotFoundError: The model has another name.
            ReloadError: A worker failed; states which, why, and how many serve the new model.
        """
        if model:
            await self.stats(model)
        return await self._reloads.request(force=force)

    async def reload_and_log(self) -> bool:
        """Reloads for a caller that reads the outcome in the log, such as a signal; returns whether it succeeded."""
        try:
            await self.reload(force=False)
        except ReloadError:
            return False
        return True

    async def drain(self) -> None:
        """Makes all workers report NOT_SERVING, also those that start later.

        Raises:
            InternalError: A worker did not confirm. One that hangs does as requested once it continues.
        """
        self.drained = True
        await self.update_health()
        await self._uninterrupted.run(self._request_all(ipc.DRAIN, required=True))

    async def stats(self, model: str = "") -> list[WorkerStats]:
        """Returns the statistics of all workers that serve; leaves out those that hang, and logs which.

        Args:
            model: Name of the model; empty for the one that there is.

        Raises:
            ModelNotFoundError: The model has another name.
            NotReadyError: No worker serves.
            InternalError: No worker answered.
        """
        if not self._serving:
            raise NotReadyError
        results = await self._request_all(ipc.STATS)
        # The engine process of --fronts does not know the name.
        names = {result.model_name for result in results} - {""}
        if model and model not in names:
            raise ModelNotFoundError(*sorted(names))
        return results

    async def drift(self, model: str = "") -> DriftReport:
        """Compares the traffic of all workers together with the validation texts; logs which workers hang.

        Args:
            model: Name of the model; empty for the one that there is.

        Raises:
            ModelNotFoundError: The model has another name.
            DriftNotAvailableError: No worker counts its traffic; states why.
            InternalError: No worker answered.
        """
        # The supervisor requires numpy for nothing else.
        from polyhead_server.drift.exchange import report_on

        if model:
            await self.stats(model)
        results = await self._request_all(ipc.DRIFT, {Role.WORKER, Role.ENGINE})
        return await asyncio.to_thread(report_on, results)

    async def add(self, worker: WorkerProcess) -> None:
        """Applies what happened while a worker was starting, now that it serves."""
        if self.drained and not worker.config.drained:
            with contextlib.suppress(WorkerFailedError):
                await worker.request(ipc.DRAIN, NoParams(), _RESPONSE_TIMEOUT_S)
        if worker.config.role is not Role.ENGINE:
            await self.candidate.add(worker)

    async def update_health(self) -> None:
        """Reports the health of the server: it is alive while any worker serves."""
        if self.health:
            answering = any(worker.config.role is not Role.ENGINE for worker in self._serving.values())
            alive = answering and not self.stopping
            await self.health.set(serving=alive and not self.drained, alive=alive)

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> list[ReloadResult]:
        """Serves another bundle in one worker after the other and stops at the first failure; see ``reload``.

        Workers that start later load that bundle too, until the next reload.
        """
        return await self._replace(ipc.PROMOTE, PromoteParams(candidate, force), candidate.path)

    async def _reload(self, force: bool) -> list[ReloadResult]:
        return await self._replace(ipc.RELOAD, ReloadParams(force), None)

    async def _replace(self, method: Method[P, ReloadResult], params: P, bundle: Path | None) -> list[ReloadResult]:
        """Replaces the model of all workers, including those that are starting: they may have read the old bundle.

        With fronts, the engine process does so for all of them.
        """
        results: list[ReloadResult] = []
        timeout_s = self._settings.start_timeout_s + _RELOAD_GRACE_S
        async with self.changing:
            for worker in self._with_another_bundle(bundle):
                if worker.config.role is Role.FRONT or not await worker.wait_until_serving():
                    continue
                try:
                    await self._require_response(worker)
                    result = await worker.request(method, params, timeout_s)
                except WorkerFailedError as error:
                    raise self._reload_error(worker, error, len(results)) from error
                # A worker that starts from now on finds the same bundle as this one.
                self.identity, self.bundle = result.identity, bundle
                results.append(result)
            if not results:
                raise ReloadError("no worker serves")
        if self._settings.fronts:
            logger.info("the engine has reloaded")
        else:
            logger.info("all %d workers have reloaded", len(results))
        return results

    def _with_another_bundle(self, bundle: Path | None) -> Iterator[WorkerProcess]:
        """Yields the workers that may have read another bundle, those that start while the first are replaced included.

        Args:
            bundle: The one that is promoted; None for that of the settings, which may have been replaced on disk.
        """
        known, seen = self._remaining(), set[WorkerProcess]()
        while left := [
            one for one in self._remaining() if one not in seen and (one in known or one.config.bundle != bundle)
        ]:
            seen.add(left[0])
            yield left[0]

    async def _require_response(self, worker: WorkerProcess) -> None:
        """Finds a worker that hangs before the others, and the callers, wait for its reload."""
        try:
            await worker.request(ipc.STATS, NoParams(), _RESPONSE_TIMEOUT_S)
        except WorkerFailedError as error:
            if isinstance(error, WorkerHangsError):
                raise

    def _reload_error(self, worker: WorkerProcess, error: WorkerFailedError, reloaded: int) -> ReloadError:
        problem = f"{worker.name}: {error}"
        if reloaded:
            problem += f". {reloaded} of {self._settings.workers} workers serve the new model"
        logger.error("reload stopped at %s", problem)
        return ReloadError(problem)

    async def _request_all(
        self, method: Method[NoParams, R], roles: Collection[Role] = frozenset(Role), *, required: bool = False
    ) -> list[R]:
        """Sends a request to all workers of some roles that serve, and logs which failed.

        Raises:
            InternalError: All of them failed, or a single one that is required.
        """
        workers = [one for one in self._remaining() if one.serving_since and one.config.role in roles]
        results, failures = await request_all(workers, method, NoParams(), _RESPONSE_TIMEOUT_S)
        if failures and (required or not results):
            raise InternalError.logged("; ".join(failures))
        for failure in failures:
            logger.warning("%s", failure)
        return results

    def _answering(self) -> list[WorkerProcess]:
        """The processes that answer calls, those that are being stopped included: they have calls in progress."""
        return [one for one in self._workers if one.serving_since and one.config.role is not Role.ENGINE]

    def _remaining(self) -> list[WorkerProcess]:
        """The workers that are not being stopped, by number."""
        remaining = (worker for worker in self._workers if not worker.stop_requested)
        return sorted(remaining, key=lambda worker: worker.number)

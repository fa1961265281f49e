"""Commands of a shadow or a canary to all processes that answer calls, also to those that start later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from polyhead_server.candidate.parameters import CanaryCounts, CanaryParams, CandidateBundle, SamplingParams
from polyhead_server.errors import CandidateError
from polyhead_server.process_reports import ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.settings import Settings

from . import ipc
from .ipc import Method, NoParams, NoResult
from .process import WorkerFailedError, WorkerProcess, request_all

if TYPE_CHECKING:
    from .commands import WorkerCommands

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")

# Seconds in which a process must answer; it may have to load a tokenizer.
_RESPONSE_TIMEOUT_S = 20.0
# The same where it finishes what it has begun: longer than it allows itself for that.
_DRAIN_TIMEOUT_S = 60.0


class CandidateCommands:
    """All processes of a server, as ``CandidateManager`` expects them."""

    def __init__(
        self, settings: Settings, commands: WorkerCommands, processes: Callable[[], Sequence[WorkerProcess]]
    ) -> None:
        """Begins without a candidate.

        Args:
            settings: The server's.
            commands: Replace the model of all processes.
            processes: Returns the processes that answer calls at the moment.
        """
        self._settings = settings
        self._commands = commands
        self._processes = processes
        self._sampling = SamplingParams()
        self._canary = CanaryParams()

    @property
    def bundle(self) -> Path:
        """Directory of the bundle of the served model."""
        return self._commands.bundle or self._settings.bundle

    @property
    def identity(self) -> ModelIdentity | None:
        """Identity of the served model; None if none serves yet."""
        return self._commands.identity

    async def stats(self) -> list[WorkerStats]:
        """See ``WorkerCommands.stats``."""
        return await self._commands.stats()

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> list[ReloadResult]:
        """See ``WorkerCommands.promote``."""
        return await self._commands.promote(candidate, force=force)

    async def sample(self, params: SamplingParams) -> None:
        """Sends a share of the texts of every process to a candidate's process.

        Raises:
            CandidateError: A process failed.
        """
        self._sampling = params
        await self._request_all(ipc.SAMPLE, params, required=bool(params.socket))

    async def set_canary(self, params: CanaryParams) -> None:
        """Lets a candidate's engine answer a share of the calls of every process.

        Raises:
            CandidateError: A process failed.
        """
        self._canary = params
        await self._request_all(ipc.SET_CANARY, params, required=bool(params.socket))

    async def drain_canary(self) -> None:
        """Waits until the engine of a canary that has ended has answered what it had begun."""
        await self._request_all(ipc.DRAIN_CANARY, NoParams(), _DRAIN_TIMEOUT_S, required=False)

    async def canary_counts(self) -> list[CanaryCounts]:
        """Returns the counts of every process since the canary began; leaves out those that hang."""
        return await self._request_all(ipc.CANARY_COUNTS, NoParams(), required=False)

    async def add(self, worker: WorkerProcess) -> None:
        """Applies what runs to a process that has started; logs what fails, as the process answers calls anyway."""
        if self._sampling.socket:
            await self._apply(worker, ipc.SAMPLE, self._sampling)
        if self._canary.socket:
            await self._apply(worker, ipc.SET_CANARY, self._canary)

    async def _apply(self, worker: WorkerProcess, method: Method[P, NoResult], params: P) -> None:
        try:
            await worker.request(method, params, _RESPONSE_TIMEOUT_S)
        except WorkerFailedError as error:
            logger.warning("%s failed in %s: %s", method.name, worker.name, error)

    async def _request_all(
        self, method: Method[P, R], params: P, timeout_s: float = _RESPONSE_TIMEOUT_S, *, required: bool
    ) -> list[R]:
        """Sends a request to all processes at once.

        Raises:
            CandidateError: A process failed, and all are required.
        """
        results, failures = await request_all(self._processes(), method, params, timeout_s)
        if failures and required:
            raise CandidateError("; ".join(failures))
        for failure in failures:
            logger.warning("%s", failure)
        return results

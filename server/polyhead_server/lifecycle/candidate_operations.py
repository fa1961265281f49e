"""A serving process's part in a shadow or a canary: it samples texts, and answers a share of its calls elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from polyhead_server.background import BackgroundTasks
from polyhead_server.candidate.answer_counts import AnswerCounts
from polyhead_server.candidate.parameters import CanaryCounts, CanaryParams, CandidateBundle, SamplingParams
from polyhead_server.candidate.sampler import Sampler
from polyhead_server.errors import CandidateError, NotReadyError
from polyhead_server.fronts.engine_client import EngineClient
from polyhead_server.fronts.pending import Target
from polyhead_server.fronts.remote_pipeline import RemotePipeline
from polyhead_server.inference.intake import Intake
from polyhead_server.observability.tracing import Tracing
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.process_reports import ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from .compatibility import identity_of

if TYPE_CHECKING:
    from .operations import Operations

logger = logging.getLogger(__name__)

# Seconds in which this process must have the tokenizer of the candidate.
_CONNECT_TIMEOUT_S = 15.0
# Seconds in which the engine of a canary that has ended must answer what it had begun. Its end answers the rest.
_DRAIN_TIMEOUT_S = 50.0


class CandidateOperations:
    """Samples and routes for one service. Event loop only."""

    def __init__(self, service: InferenceService, settings: Settings, tracing: Tracing | None) -> None:
        """Begins with no candidate.

        Args:
            service: Answers the calls of this process.
            settings: The server's.
            tracing: Traces the messages; None for no traces.
        """
        self._service = service
        self._settings = settings
        self._tracing = tracing
        self._sampler: Sampler | None = None
        self._canary: _Canary | None = None
        # One change at a time: commands come while an earlier one waits for an engine.
        self._lock = asyncio.Lock()
        self._ending = BackgroundTasks()

    def sample(self, params: SamplingParams) -> None:
        """Sends a share of the texts to the candidate's process from now on, or none any more.

        Raises:
            CandidateError: The candidate's process does not listen.
        """
        if self._sampler:
            self._service.observers.remove(self._sampler.observe)
            self._sampler.close()
            self._sampler = None
        if params.socket:
            try:
                self._sampler = Sampler(Path(params.socket), params.share, self._settings.max_windows)
            except OSError as error:
                raise CandidateError(f"its process does not answer: {error}") from error
            self._service.observers.append(self._sampler.observe)

    async def set_canary(self, params: CanaryParams) -> None:
        """Lets the candidate's engine answer a share of the calls from now on, or none any more.

        Calls that it has begun to answer are finished, unless it does not answer at all: then the served model answers
        them.

        Raises:
            CandidateError: The engine does not answer.
        """
        async with self._lock:
            if self._canary and self._canary.params.socket == params.socket:
                return
            if old := self._canary:
                self._canary = None
                self._service.canary = None
                self._service.observers.remove(old.served.observe)
                self._service.canary_observers.remove(old.candidate.observe)
                closing = self._ending.start(old.close(lost=params.lost))
                if params.lost:
                    await closing
            if params.socket:
                canary = _Canary(params, self._settings, self._tracing)
                await canary.connect()
                self._canary = canary
                self._service.observers.append(canary.served.observe)
                self._service.canary_observers.append(canary.candidate.observe)
                self._service.route_canary(canary.pipeline, params.share)

    async def drain_canary(self) -> None:
        """Waits until the engine of a canary that has ended has answered what it had begun, for a limited time."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_DRAIN_TIMEOUT_S)

    def canary_counts(self) -> CanaryCounts:
        """Returns the counts of both models since the canary began; all 0 without one."""
        if self._canary is None:
            return CanaryCounts()
        return CanaryCounts(self._canary.served.snapshot(), self._canary.candidate.snapshot())


class _Canary:
    """The connection to a candidate's engine.

    Attributes:
        params: Where it is, and the share of the calls.
        served: Counts the answers of the served model.
        candidate: Counts those of the candidate.
    """

    def __init__(self, params: CanaryParams, settings: Settings, tracing: Tracing | None) -> None:
        self.params = params
        self.served, self.candidate = AnswerCounts(), AnswerCounts()
        self._settings = settings
        self._on_message = tracing.on_message if tracing else None
        self._client = EngineClient(Path(params.socket), settings, self._on_target)
        self._pipelines: asyncio.Queue[RemotePipeline] = asyncio.Queue()
        self._running = asyncio.create_task(self._client.link.run())
        self._pipeline: RemotePipeline | None = None

    @property
    def pipeline(self) -> Intake:
        """The pipeline, once it is connected."""
        if self._pipeline is None:
            raise NotReadyError
        return self._pipeline

    async def connect(self) -> None:
        """Waits for the model of the engine.

        Raises:
            CandidateError: It does not come.
        """
        try:
            self._pipeline = await asyncio.wait_for(self._pipelines.get(), _CONNECT_TIMEOUT_S)
        except TimeoutError:
            await self._stop()
            raise CandidateError(f"its engine did not answer within {_CONNECT_TIMEOUT_S:g} s") from None

    async def close(self, *, lost: bool) -> None:
        """Waits for the answers that were begun; with an engine that is lost, gives them to the served model."""
        self._client.retire(lost=lost)
        try:
            await self.pipeline.close()
        finally:
            await self._stop()

    def _on_target(self, target: Target) -> None:
        pipeline = RemotePipeline(
            self._client, target, self._settings, self._on_message, on_exception=exit_if_out_of_memory
        )
        self._pipelines.put_nowait(pipeline)

    async def _stop(self) -> None:
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running


class UnitProcesses:
    """A model of a server without other processes, as ``CandidateManager`` expects it."""

    def __init__(self, operations: Operations, service: InferenceService, candidate: CandidateOperations) -> None:
        """Takes the operations and the service of this process, and its part in a shadow or canary."""
        self._operations = operations
        self._service = service
        self._candidate = candidate

    async def stats(self) -> list[WorkerStats]:
        """See ``ServingProcesses``."""
        return [await self._operations.stats()]

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> list[ReloadResult]:
        """See ``ServingProcesses``."""
        return [await self._operations.promote(candidate, force=force)]

    @property
    def bundle(self) -> Path:
        """See ``ServingProcesses``."""
        return self._service.require_model().source.path

    @property
    def identity(self) -> ModelIdentity:
        """See ``ServingProcesses``."""
        return identity_of(self._service.require_model())

    async def sample(self, params: SamplingParams) -> None:
        """See ``ServingProcesses``."""
        self._candidate.sample(params)

    async def set_canary(self, params: CanaryParams) -> None:
        """See ``ServingProcesses``."""
        await self._candidate.set_canary(params)

    async def drain_canary(self) -> None:
        """See ``ServingProcesses``."""
        await self._candidate.drain_canary()

    async def canary_counts(self) -> list[CanaryCounts]:
        """See ``ServingProcesses``."""
        return [self._candidate.canary_counts()]

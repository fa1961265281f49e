"""Operations that an operator or a supervisor can run on one server process: reload, drain, statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Protocol

from polyhead_server.candidate.parameters import CandidateBundle
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.errors import InternalError, NotReadyError, ReloadError, ServerError
from polyhead_server.inference.intake import Intake
from polyhead_server.inference.model import Model
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.process_reports import DriftCounts, ReloadResult, WorkerStats
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService

from .candidate_operations import CandidateOperations
from .compatibility import identity_of
from .reload import Reloader
from .reload_queue import ReloadQueue

logger = logging.getLogger(__name__)


class ProcessOperations(Protocol):
    """What a supervisor may run on one of its processes. Each raises a ``ServerError`` that states why it failed."""

    @property
    def candidate(self) -> CandidateOperations | None:
        """The part of the process in a shadow or canary; None for a process that answers no calls."""

    async def reload(self, *, force: bool) -> ReloadResult:
        """Loads the bundle again and serves it."""

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> ReloadResult:
        """Loads another bundle and serves it."""

    async def drain(self) -> None:
        """Reports NOT_SERVING from now on."""

    async def stats(self) -> WorkerStats:
        """Returns the statistics of the process."""

    async def drift(self) -> DriftCounts:
        """Returns what the process has counted of its traffic."""


class Operations:
    """Operations on this process. Each raises a ``ServerError`` that states why it failed.

    Attributes:
        reloader: Loads the bundle again; None until the model is ready.
        load_candidate: Loads another bundle; None until the model is ready.
        candidate: The part of this process in a shadow or canary.
        drained: Whether an operator has drained the server.
    """

    def __init__(
        self,
        service: InferenceService,
        health: Health,
        drift: DriftMonitor,
        candidate: CandidateOperations | None = None,
    ) -> None:
        """Connects the operations to the process.

        Args:
            service: The inference service.
            health: The health service of ``service``.
            drift: Counts the texts that this process computes.
            candidate: The part of this process in a shadow or canary.
        """
        self.candidate = candidate
        self.load_candidate: Callable[[CandidateBundle], Awaitable[Model]] | None = None
        self.reloader: Reloader[Intake] | None = None
        self.drained = False
        # A load cannot be stopped once it has begun, so the next one waits for it.
        self._reloads = ReloadQueue(self._reload)
        self._service = service
        self._health = health
        self._drift = drift

    async def reload(self, *, force: bool) -> ReloadResult:
        """Loads the bundle again and serves it.

        Args:
            force: Accept a model that is incompatible with the serving one.

        Raises:
            NotReadyError: The first model is still loading.
            ReloadError: The old model stays; states why.
        """
        with internal_errors("reload"):
            return self._result(await self._reloads.request(force=force))

    async def promote(self, candidate: CandidateBundle, *, force: bool) -> ReloadResult:
        """Loads another bundle and serves it.

        Args:
            candidate: The bundle.
            force: Accept a model that is incompatible with the serving one.

        Raises:
            NotReadyError: The first model is still loading.
            ReloadError: The old model stays; states why.
        """
        if self.reloader is None or self.load_candidate is None:
            raise NotReadyError
        with internal_errors("promote"):
            model = await self.reloader.reload(force=force, load=partial(self.load_candidate, candidate))
        return self._result(model)

    async def reload_and_log(self) -> bool:
        """Reloads for a caller that reads the outcome in the log, such as a signal; returns whether it succeeded."""
        try:
            await self.reload(force=False)
        except ReloadError:
            # The reloader has logged it.
            return False
        except ServerError as error:
            logger.error("not reloaded: %s", error)  # noqa: TRY400 - the traceback adds nothing
            return False
        return True

    async def drain(self) -> None:
        """Reports NOT_SERVING for the inference service from now on; calls are still answered."""
        logger.info("drained by an operator: the health service reports NOT_SERVING for %s", service_names.INFERENCE)
        self.drained = True
        with internal_errors("drain"):
            # While the model is loading, the process as a whole is not alive yet.
            await self._health.set(serving=False, alive=self._health.alive)

    async def stats(self) -> WorkerStats:
        """Returns the statistics of this process.

        Raises:
            NotReadyError: The first model is still loading.
        """
        with internal_errors("stats"):
            return dataclasses.replace(self._service.stats(), serving=self._health.serving)

    async def drift(self) -> DriftCounts:
        """Returns what this process has counted of its traffic."""
        with internal_errors("drift"):
            return self._drift.counts()

    def _result(self, model: Model) -> ReloadResult:
        return dataclasses.replace(reload_result(model), model_name=self._service.served_name())

    async def _reload(self, force: bool) -> Model:
        if self.reloader is None:
            raise NotReadyError
        return await self.reloader.reload(force=force)


def reload_result(model: Model) -> ReloadResult:
    """Describes the model that this process serves after a reload."""
    return ReloadResult(os.getpid(), model.source.model_id, dict(model.fingerprints.heads), identity_of(model))


@contextlib.contextmanager
def internal_errors(operation: str) -> Iterator[None]:
    """Logs an unexpected error and raises an ``InternalError`` that hides its details."""
    try:
        yield
    except ServerError:
        raise
    except Exception as error:
        exit_if_out_of_memory(error)
        raise InternalError.logged(f"{operation} failed", error) from error

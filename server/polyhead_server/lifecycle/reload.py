"""Replaces the served model while the server answers.

::

    bundle on disk -> load, self-test -> compatible? -> new messages use the new model -> the old model is freed

Messages accepted before the switch are answered by the old model. If any step fails, the old model stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from polyhead_server.background import BackgroundTasks
from polyhead_server.errors import ReloadError, StartupError
from polyhead_server.inference.model import Model
from polyhead_server.threads import in_daemon_thread

from .compatibility import identity_of, incompatibility

logger = logging.getLogger(__name__)


class Replaceable(Protocol):
    """What answers with one model: a pipeline, or the engine core of the engine process."""

    model: Model

    async def close(self) -> None:
        """Finishes what was submitted and frees the model."""


P = TypeVar("P", bound=Replaceable)


class PipelineHost(Protocol[P]):
    """A service that answers with one pipeline at a time."""

    @property
    def pipeline(self) -> P | None:
        """The pipeline that answers now."""

    def serve(self, pipeline: P) -> None:
        """Answers with this pipeline from now on."""


class Reloader(Generic[P]):
    """Replaces the pipeline of a service, one reload at a time.

    Attributes:
        closing: One task for each replaced pipeline that is still answering what it accepted.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Model]],
        start: Callable[[Model], P],
        service: PipelineHost[P],
        count: Callable[[str], None],
        prepare: Callable[[Model], Awaitable[None]] | None = None,
        *,
        name: str = "",
    ) -> None:
        """Connects the reloader to the server.

        Args:
            load: Loads and tests the model without blocking the event loop. Raises ``StartupError``.
            start: Creates a running pipeline for the model.
            service: The service whose pipeline is replaced.
            count: Called once per reload with its outcome, ``success`` or ``refused``.
            prepare: Prepares others for a model that is accepted, before the switch. Raises ``StartupError``.
            name: Name of the model, one of several; empty for the only one.
        """
        self._load = load
        self._start = start
        self._service = service
        self._count = count
        self._prepare = prepare
        # Begins the messages about one of several models.
        self._subject = f"{name}: " if name else ""
        self._lock = asyncio.Lock()
        self.closing = BackgroundTasks()

    async def reload(self, *, force: bool = False, load: Callable[[], Awaitable[Model]] | None = None) -> Model:
        """Loads the bundle again, or another one, and serves it.

        Args:
            force: Accept a model that is incompatible with the serving one, see ``compatibility``.
            load: Loads the other one; None for the bundle of the command line.

        Returns:
            The model that answers from now on.

        Raises:
            ReloadError: The old model stays; states why.
        """
        async with self._lock:
            logger.info("%sreloading", self._subject)
            old = self._service.pipeline
            if old is None:
                raise self._refuse("there is no serving model to replace yet")
            try:
                model = await (load or self._load)()
            except StartupError as error:
                raise self._refuse(str(error)) from error
            except Exception as error:
                # For example, not enough memory for two models.
                logger.exception("%sloading failed", self._subject)
                raise self._refuse("loading failed; see the log") from error
            reason = incompatibility(identity_of(old.model), identity_of(model))
            if reason and not force:
                await in_daemon_thread(model.close, "model-closer")
                raise self._refuse(f"{reason}. Force the reload, or serve it from another server")
            if self._prepare:
                try:
                    await self._prepare(model)
                except StartupError as error:
                    await in_daemon_thread(model.close, "model-closer")
                    raise self._refuse(str(error)) from error
            self._service.serve(self._start(model))
            self._count("success")
            logger.info("%sserving %s; closing %s", self._subject, model.source.model_id, old.model.source.model_id)
            self.closing.start(self._close(old))
            return model

    async def _close(self, pipeline: P) -> None:
        await pipeline.close()
        logger.info("%s has answered its last item and is closed", pipeline.model.source.model_id)

    def _refuse(self, reason: str) -> ReloadError:
        logger.error("%snot reloaded: %s", self._subject, reason)
        self._count("refused")
        return ReloadError(f"{self._subject}not reloaded, the old model stays: {reason}")

"""Another bundle takes over while the server answers.

::

    bundle, as it lies now -> load, self-test -> may it follow? -> new messages go to it -> the old one ends, freed

What was accepted before is answered by the model that was there before. Whatever fails, the old one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from polyhead_server.errors import ReloadError, StartupError
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline

from .compatibility import Identity, problem

logger = logging.getLogger(__name__)

# Device, inode and time of the last change of a file.
State = tuple[int, int, int]


class Served(Protocol):
    """What answers with one pipeline until it is told to answer with another."""

    @property
    def pipeline(self) -> Pipeline | None:
        """What answers now."""

    def serve(self, pipeline: Pipeline) -> None:
        """Answers with this pipeline from now on."""


class Reloader:
    """Replaces the pipeline that a service answers with, one reload at a time."""

    def __init__(
        self,
        load: Callable[[], Awaitable[Model]],
        start: Callable[[Model], Pipeline],
        service: Served,
        count: Callable[[str], None],
    ) -> None:
        """Takes what it needs of the server.

        Args:
            load: Loads and tests the model without holding up the event loop. Raises ``StartupError``.
            start: Makes a running pipeline of it.
            service: Where the pipeline answers.
            count: Told of every reload whether it was ``success`` or ``refused``.
        """
        self._load = load
        self._start = start
        self._service = service
        self._count = count
        self._lock = asyncio.Lock()
        # Pipelines that finish what they accepted.
        self._ending: set[asyncio.Task[None]] = set()

    async def reload(self, *, force: bool = False) -> Model:
        """Loads the bundle again and answers with it from then on.

        Args:
            force: Accept one that clients cannot go on with as if nothing had changed, see ``succession``.

        Returns:
            The model that answers now.

        Raises:
            ReloadError: Says why the old one stays.
        """
        async with self._lock:
            logger.info("reloading")
            old = self._service.pipeline
            if old is None:
                raise self._refused("there is no model yet that another could follow")
            try:
                model = await self._load()
            except StartupError as error:
                raise self._refused(str(error)) from error
            except Exception as error:
                # Such as memory that is not enough for two models.
                logger.exception("loading failed")
                raise self._refused("loading failed; the log says why") from error
            reason = problem(Identity.of(old.model), Identity.of(model))
            if reason and not force:
                await asyncio.to_thread(model.close)
                raise self._refused(f"{reason}. It has to be forced, or served by another server")
            self._service.serve(self._start(model))
            self._count("success")
            logger.info("%s answers now; %s ends", model.source.model_id, old.model.source.model_id)
            task = asyncio.create_task(self._end(old))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            return model

    async def watch(self, manifest: Path, seen: State | None, every_s: float) -> None:
        """Reloads whenever the manifest of the bundle is another file than before; never ends by itself.

        Args:
            manifest: ``bundle.json``. A bundle is put in place as a whole, so where this is new, all is.
            seen: Its state before the model that serves was loaded.
            every_s: Seconds between looks.
        """
        while True:
            await asyncio.sleep(every_s)
            state = await asyncio.to_thread(state_of, manifest)
            if state is not None and state != seen:
                # Told once; one that is refused is looked at again when it changes.
                with contextlib.suppress(ReloadError):
                    await self.reload()
            seen = state or seen

    async def _end(self, pipeline: Pipeline) -> None:
        await pipeline.close()
        logger.info("%s has answered its last item", pipeline.model.source.model_id)

    def _refused(self, reason: str) -> ReloadError:
        logger.error("not reloaded: %s", reason)
        self._count("refused")
        return ReloadError(f"not reloaded, the old model stays: {reason}")


def state_of(path: Path) -> State | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns

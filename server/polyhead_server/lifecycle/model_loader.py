"""Loads the bundle in a thread, for no longer than a limit.

A load cannot be stopped from outside: a graph may loop, a file system may hang. Beyond the limit it is abandoned. What
it computes is stopped where the engine can, and its result is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Loading, Model
from polyhead_server.threads import in_daemon_thread

from .entry import ServerFailedError

logger = logging.getLogger(__name__)

# Abandoned loads that may still run. Each may occupy a core and the memory of a model.
MAX_ABANDONED = 2


R = TypeVar("R")


def result_of(load: asyncio.Task[R]) -> R:
    """Returns the result of the first load of a process.

    Raises:
        ServerFailedError: It failed, and another attempt may succeed.
        StartupError: The model cannot be served.
    """
    try:
        return load.result()
    except StartupError as error:
        if error.transient:
            raise ServerFailedError(str(error)) from error
        raise


class ModelLoader:
    """Loads models, each within a limit. Event loop only."""

    def __init__(self, load: Callable[[Loading], Model], timeout_s: float) -> None:
        """Prepares the loader.

        Args:
            load: Loads and tests the model; runs in a thread. Raises ``StartupError``.
            timeout_s: Seconds after which a load is abandoned.
        """
        self._load = load
        self._timeout_s = timeout_s
        self._abandoned: set[asyncio.Future[Model]] = set()

    async def load(self, work: Callable[[Loading], Model] | None = None) -> Model:
        """Loads a model.

        Args:
            work: Loads another model than usual.

        Raises:
            StartupError: The model cannot be served, or the load takes longer than the limit, which is transient.
        """
        if len(self._abandoned) >= MAX_ABANDONED:
            raise StartupError(
                f"{len(self._abandoned)} loads that took longer than {self._timeout_s:g} s (--start-timeout-s) are "
                "still running; restart the server"
            )
        loading = Loading()
        running = in_daemon_thread(lambda: (work or self._load)(loading), "model-loader")
        try:
            await asyncio.wait({running}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._abandon(running, loading)
            raise
        if running.done():
            return running.result()
        self._abandon(running, loading)
        raise StartupError(f"loading took longer than {self._timeout_s:g} s (--start-timeout-s)", transient=True)

    def _abandon(self, running: asyncio.Future[Model], loading: Loading) -> None:
        if running.done():
            self._discard(running)
            return
        loading.abandon()
        self._abandoned.add(running)
        running.add_done_callback(self._discard)

    def _discard(self, ended: asyncio.Future[Model]) -> None:
        self._abandoned.discard(ended)
        if ended.cancelled():
            return
        if ended.exception() is None:
            ended.result().close()
        logger.info("an abandoned load has ended")

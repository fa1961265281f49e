"""What a supervisor tells its workers to do, for itself or because one of them was asked to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from pathlib import Path
from typing import Any

from polyhead_server.security.file_watcher import stamp
from polyhead_server.settings import Settings

from .ipc import Values, line
from .process import WorkerFailedError, WorkerProcess

logger = logging.getLogger(__name__)

# Seconds that a worker has for what takes no time.
_ANSWER_S = 10.0


class WorkerCommands:
    """Orders to all workers, and the state that those who start later must share.

    Attributes:
        identity: Of the model that serves; None where none serves yet.
        drained: Whether an operator has drained the server.
        changing: Held while what serves is being replaced, a model or a process: one at a time.
    """

    def __init__(self, settings: Settings, workers: Set[WorkerProcess], serving: Mapping[int, WorkerProcess]) -> None:
        """Takes the supervisor's view of its workers.

        Args:
            settings: The server's.
            workers: All processes that have not ended.
            serving: Of each number the worker that serves.
        """
        self.identity: Values | None = None
        self.drained = False
        self.changing = asyncio.Lock()
        self._settings = settings
        self._workers = workers
        self._serving = serving
        # The worker that has the admin service.
        self._admin: WorkerProcess | None = None
        self._handing = asyncio.Lock()
        self._answers: set[asyncio.Task[None]] = set()

    def hear(self, worker: WorkerProcess, said: Values) -> None:
        """Does for all workers what one was asked, and answers it."""
        task = asyncio.create_task(self._answer(worker, said))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def reload_as_told(self) -> None:
        """Reloads for somebody who looks for the outcome in the log, where it is written anyway."""
        with contextlib.suppress(WorkerFailedError):
            await self._reload({"force": False})

    async def watch(
        self, manifest: Path, every_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Reloads whenever the manifest of the bundle changes; never ends by itself.

        Not each worker by itself: the others would not be told, nor those that start later.

        Args:
            manifest: ``bundle.json``. A bundle is put in place as a whole, so where this is new, all is.
            every_s: Seconds between looks.
            sleep: Waits for so many.
        """
        seen = stamp(manifest)
        while True:
            await sleep(every_s)
            found = await asyncio.to_thread(stamp, manifest)
            if found and found != seen:
                await self.reload_as_told()
            # One that is refused is looked at again when it changes.
            seen = found or seen

    async def welcome(self, worker: WorkerProcess) -> None:
        """Tells one that serves from now on what it missed while it started."""
        if self.drained and not worker.told.drained:
            with contextlib.suppress(WorkerFailedError):
                await worker.do("drain", {}, _ANSWER_S)
        await self.hand_admin()

    async def hand_admin(self) -> None:
        """Sees to it that one worker that serves has the admin service: the lowest, when it changes hands."""
        if not self._settings.admin_listen:
            return
        async with self._handing:
            if self._admin in self._serving.values():
                return
            if self._admin and not self._admin.ended.done():
                with contextlib.suppress(WorkerFailedError):
                    await self._admin.do("close_admin", {}, _ANSWER_S)
            self._admin = None
            for number, worker in sorted(self._serving.items()):
                if worker.told_to_end:
                    continue
                try:
                    await worker.do("open_admin", {}, _ANSWER_S)
                except WorkerFailedError as error:
                    logger.error("worker %d has not the admin service: %s", number, error)  # noqa: TRY400 - no more
                else:
                    self._admin = worker
                    return

    async def _answer(self, worker: WorkerProcess, said: Values) -> None:
        answers: Values = {"answers": said["ask"]}
        operations = {"reload": self._reload, "drain": self._drain, "stats": self._stats}
        try:
            answers["workers"] = await operations[said["what"]](said["arguments"])
        except WorkerFailedError as error:
            answers["message"] = str(error)
        worker.send(line(answers))

    async def _reload(self, arguments: Values) -> list[Values]:
        """Lets one worker after the other load the bundle again, up to the first that cannot.

        Also those that still start: they may have begun before the new bundle was there.
        """
        answers: list[Values] = []
        async with self.changing:
            for worker in sorted(self._staying(), key=lambda one: one.number):
                if not await worker.up():
                    continue
                try:
                    answers.append(await worker.do("reload", arguments, self._settings.start_timeout_s))
                except WorkerFailedError as error:
                    problem = f"worker {worker.number}: {error}"
                    if answers:
                        problem += f". {len(answers)} of {self._settings.workers} workers answer with the new model"
                    logger.error("reload stopped at %s", problem)  # noqa: TRY400 - the worker has logged the rest
                    raise WorkerFailedError(problem) from error
                # Who starts now finds the same bundle as this one.
                self.identity = answers[-1]["identity"]
            if not answers:
                raise WorkerFailedError("no worker serves")
        logger.info("all %d workers have reloaded", len(answers))
        return answers

    async def _drain(self, arguments: Values) -> list[Values]:
        self.drained = True
        return await self._tell_all("drain", arguments)

    async def _stats(self, arguments: Values) -> list[Values]:
        return await self._tell_all("stats", arguments)

    async def _tell_all(self, what: str, arguments: Values) -> list[Values]:
        """Tells all that serve, at once; those that end meanwhile have no answer."""
        workers = sorted((one for one in self._staying() if one.served_since), key=lambda one: one.number)
        answers: list[Any] = await asyncio.gather(
            *(worker.do(what, arguments, _ANSWER_S) for worker in workers), return_exceptions=True
        )
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, Exception) and not worker.ended.done():
                raise answer
        return [answer for answer in answers if not isinstance(answer, Exception)]

    def _staying(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if not worker.told_to_end]

"""One worker process, as its supervisor sees it: started, told to do things, ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Self, cast

from .ipc import MAX_LINE_BYTES, Start, Values, line

logger = logging.getLogger(__name__)


class WorkerFailedError(Exception):
    """A worker could not do what it was told, or ended meanwhile."""


class WorkerProcess:
    """A process that was started and not yet waited for.

    Attributes:
        number: Its place among the workers; a successor has that of its predecessor.
        told: Its first line.
        identity: Of its model, once it serves.
        served_since: ``time.monotonic()`` second since when it serves; None before.
        told_to_end: Whether it was sent SIGTERM or SIGKILL.
        ended: Holds its exit code in the end.
    """

    def __init__(
        self,
        number: int,
        told: Start,
        process: asyncio.subprocess.Process,
        ask: Callable[[WorkerProcess, Values], None],
    ) -> None:
        self.number = number
        self.told = told
        self.identity: Values | None = None
        self.served_since: float | None = None
        self.told_to_end = False
        self.ended = asyncio.create_task(process.wait())
        self._process = process
        self._ask = ask
        self._serves = asyncio.Event()
        self._numbers = itertools.count()
        self._told: dict[int, asyncio.Future[Values]] = {}
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, number: int, told: Start, ask: Callable[[WorkerProcess, Values], None]) -> Self:
        """Starts a worker.

        Args:
            number: Its place among the workers.
            told: Its first line.
            ask: Called with the process and what it asks.

        Raises:
            OSError: There is no room for one more process.
        """
        # -P: without it, modules in the current directory would come before the installed ones.
        command = [sys.executable, "-P", "-m", "polyhead_server.workers.main"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            limit=MAX_LINE_BYTES,
            # What a terminal sends to all of its group is for the supervisor alone, which tells the workers.
            start_new_session=True,
        )
        worker = cls(number, told, process, ask)
        worker.send(told.encode())
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def served_s(self) -> float:
        """For how many seconds it has served."""
        return 0.0 if self.served_since is None else time.monotonic() - self.served_since

    async def up(self, timeout_s: float | None = None, *others: asyncio.Task[Any]) -> bool:
        """Waits until it serves, ends, the time is over, or one of others is done; returns whether it serves."""
        serves = asyncio.create_task(self._serves.wait())
        waited: set[asyncio.Task[Any]] = {serves, self.ended, *others}
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        serves.cancel()
        return self._serves.is_set() and not self.ended.done()

    async def do(self, what: str, arguments: Values, timeout_s: float) -> Values:
        """Tells the worker to do something, and returns its answer.

        Raises:
            WorkerFailedError: It could not, it ended, or the time is over.
        """
        number = next(self._numbers)
        answer = self._told[number] = asyncio.get_running_loop().create_future()
        self.send(line({"do": number, "what": what, "arguments": arguments}))
        if self._listening.done():
            self._fail_all()
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise WorkerFailedError(f"it did not answer within {timeout_s:g} s") from None
        finally:
            del self._told[number]

    def send(self, data: bytes) -> None:
        """Sends a line; one that has ended does not get it."""
        stdin = cast(asyncio.StreamWriter, self._process.stdin)
        if not stdin.is_closing():
            stdin.write(data)

    def terminate(self) -> None:
        """Tells it to drain and end, once: a second signal would cut it short."""
        if not self.told_to_end:
            self.told_to_end = True
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """Ends it now."""
        self.told_to_end = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _listen(self) -> None:
        reader = cast(asyncio.StreamReader, self._process.stdout)
        try:
            while data := await reader.readline():
                self._hear(json.loads(data))
        except ValueError:
            # Only a line that is too long or no JSON: this worker and we are not of one version.
            logger.exception("process %d says what cannot be understood; it is killed", self.pid)
            self.kill()
        finally:
            self._fail_all()

    def _hear(self, said: Values) -> None:
        if "serving" in said:
            self.identity, self.served_since = said["serving"], time.monotonic()
            self._serves.set()
        elif "ask" in said:
            self._ask(self, said)
        elif "done" in said and (answer := self._waiting(said["done"])):
            answer.set_result(said["answer"])
        elif "failed" in said and (answer := self._waiting(said["failed"])):
            answer.set_exception(WorkerFailedError(said["message"]))

    def _waiting(self, number: int) -> asyncio.Future[Values] | None:
        answer = self._told.get(number)
        return None if answer is None or answer.done() else answer

    def _fail_all(self) -> None:
        for answer in self._told.values():
            if not answer.done():
                answer.set_exception(WorkerFailedError("it ended"))

"""One of several server processes; the supervisor in ``workers`` starts it: ``python -m polyhead_server.workers.main``."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, BinaryIO

from polyhead_server.cli import run
from polyhead_server.errors import ReloadError, ServerError

from .ipc import MAX_LINE_BYTES, Start, Values, line

if TYPE_CHECKING:
    from polyhead_server.lifecycle.compatibility import Identity
    from polyhead_server.lifecycle.operations import Control


def main() -> None:
    """Serves on its part of the cores, until a signal or the end of the supervisor."""
    # Not a byte more than the line: what follows is read by the event loop.
    told = Start.decode(io.FileIO(0, closefd=False).readline())
    if told.cores:
        # Before any library counts the cores.
        os.sched_setaffinity(0, told.cores)
    if told.metrics_folder:
        # Before prometheus_client, which looks for it, is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = told.metrics_folder
    # What a library prints is not for the supervisor.
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run(told.settings, lambda _: _serve(told, said))


async def _serve(told: Start, said: BinaryIO) -> int:
    from polyhead_server.lifecycle.compatibility import Identity
    from polyhead_server.lifecycle.server import serve

    stop = asyncio.Event()
    supervisor = Supervisor(said, told.drained, Identity.from_json(told.identity) if told.identity else None)
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    listening = asyncio.create_task(supervisor.listen(reader))
    # The end of the pipe is the end of the supervisor.
    listening.add_done_callback(lambda _: stop.set())
    try:
        return await serve(told.settings, stop, supervisor)
    finally:
        if listening.done() and told.metrics_folder:
            # The supervisor was killed, and cannot do it.
            shutil.rmtree(told.metrics_folder, ignore_errors=True)


class Supervisor:
    """The supervisor, as its worker sees it: the worker's ``lifecycle.Team``."""

    def __init__(self, said: BinaryIO, drained: bool, identity: Identity | None) -> None:
        """Takes what the first line told.

        Args:
            said: Where lines to the supervisor go.
            drained: Whether an operator has drained the server.
            identity: Of the model that serves; None where none serves yet.
        """
        self.drained = drained
        self.identity = identity
        self._said = said
        self._control: Control | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[list[Values]]] = {}
        self._working: set[asyncio.Task[None]] = set()

    def announce(self, identity: Identity, control: Control) -> None:
        """Says that this worker serves, and what does from then on what it is told."""
        self._control = control
        self._say({"serving": identity.to_json()})

    async def ask(self, what: str, arguments: Values) -> list[Values]:
        """Asks all workers to do something.

        Returns:
            The answer of each.

        Raises:
            ReloadError: One of them could not.
        """
        number = next(self._numbers)
        answers: asyncio.Future[list[Values]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answers
        self._say({"ask": number, "what": what, "arguments": arguments})
        try:
            return await answers
        finally:
            del self._asked[number]

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hears what the supervisor says, until it is gone."""
        while data := await reader.readline():
            said = json.loads(data)
            if "do" in said:
                task = asyncio.create_task(self._do(said))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
            elif (answers := self._asked.get(said["answers"])) and not answers.done():
                if "message" in said:
                    answers.set_exception(ReloadError(said["message"]))
                else:
                    answers.set_result(said["workers"])

    async def _do(self, said: Values) -> None:
        # The supervisor tells nobody anything who has not announced itself.
        assert self._control  # noqa: S101
        try:
            self._say({"done": said["do"], "answer": await self._control.do(said["what"], said["arguments"])})
        except ServerError as error:
            self._say({"failed": said["do"], "message": str(error)})

    def _say(self, values: Values) -> None:
        self._said.write(line(values))
        self._said.flush()


if __name__ == "__main__":
    main()

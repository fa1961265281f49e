"""The engine process as the fronts see it: accepts their connections, and replaces the model for all of them at once.

A reload has two steps. First every front loads the tokenizer of the new model and says so. Then the engine switches:
from that moment it refuses messages for the old model, which their fronts submit again for the new one. Messages that
it has admitted before are answered by the old model. So once a client has an answer of the new model, no call that
begins later is answered by the old one, whichever front it reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import struct
from pathlib import Path

from polyhead_server.background import BackgroundTasks
from polyhead_server.inference.model import Model
from polyhead_server.threads import in_daemon_thread

from .channel import (
    MAX_MESSAGE_BYTES,
    Channel,
    ChannelError,
    Ends,
    close_all,
    greeting,
    make_ends,
    read_greeting,
)
from .front_connection import FrontConnection
from .model_files import ModelFiles, export_model
from .served_model import Host, ServedModel

logger = logging.getLogger(__name__)

# Seconds in which a front must load the tokenizer of a new model. The calls of one that takes longer wait for it.
PREPARATION_TIMEOUT_S = 10.0
_GREETING_TIMEOUT_S = 5.0
_BACKLOG = 64
_PEER_CREDENTIALS = struct.Struct("3i")


class EngineHost(Host):
    """Serves the fronts. Event loop only.

    Attributes:
        connections: The fronts that are connected.
        unused: Set while there are none.
    """

    def __init__(self, path: Path) -> None:
        """Does not listen yet.

        Args:
            path: Socket to listen on, in a directory that no other user may enter.
        """
        self.connections: set[FrontConnection] = set()
        self.unused = asyncio.Event()
        self.unused.set()
        self._path = path
        self._listener: socket.socket | None = None
        self._numbers = itertools.count(1)
        # The files of the model that answers, and of the one that will.
        self._files: dict[int, ModelFiles] = {}
        self._prepared: tuple[Model, int] | None = None
        self._greetings = BackgroundTasks()

    @property
    def pipeline(self) -> ServedModel | None:
        """The model that answers now."""
        return self.current

    def listen(self) -> None:
        """Starts to accept fronts; a socket that a former engine process has left is replaced."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(self._path))
        self._listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Ends all connections."""
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for task in self._greetings:
            task.cancel()
        for connection in list(self.connections):
            self._remove(connection, "the engine is closing")
        for files in self._files.values():
            files.close()
        self._files.clear()

    async def prepare(self, model: Model) -> None:
        """Lets every front load the tokenizer of a model, and waits for them, but not for one that hangs.

        Raises:
            StartupError: The bundle has changed since the model was loaded.
        """
        number = next(self._numbers)
        files = await in_daemon_thread(lambda: export_model(model, number), "model-files")
        self._drop_files_except(self.current.number if self.current else 0)
        self._files[number] = files
        self._prepared = model, number
        for connection in list(self.connections):
            connection.announce(*files)
        waiting = [asyncio.create_task(_wait_until_ready(one, number)) for one in self.connections]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=PREPARATION_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                logger.warning("%d fronts are not ready for the new model; their calls wait", len(late))

    def number_of(self, model: Model) -> int:
        """Returns the number of the model that was prepared last.

        Raises:
            RuntimeError: It is another one.
        """
        if self._prepared is None or self._prepared[0] is not model:
            raise RuntimeError("the model was not prepared")
        return self._prepared[1]

    def serve(self, served: ServedModel) -> None:
        """Answers with this model from now on."""
        self.current = served
        self._prepared = None
        self._drop_files_except(served.number)
        for connection in self.connections:
            connection.serve(served.number)

    def _drop_files_except(self, number: int) -> None:
        for other in [one for one in self._files if one != number]:
            self._files.pop(other).close()

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._greetings.start(self._greet(connection))

    async def _greet(self, connection: socket.socket) -> None:
        """Exchanges greetings with a front, and connects it."""
        ends: Ends | None = None
        try:
            _require_same_user(connection)
            async with asyncio.timeout(_GREETING_TIMEOUT_S):
                data = await asyncio.get_running_loop().sock_recv(connection, MAX_MESSAGE_BYTES)
            process_id = read_greeting(data)
            ends = make_ends()
            socket.send_fds(connection, [greeting()], list(ends))
        except (ChannelError, OSError, TimeoutError) as error:
            logger.warning("a front could not connect: %s", error)
            connection.close()
            close_all(*(ends or ()))
            return
        self._connect(FrontConnection(process_id, self), connection, ends)

    def _connect(self, front: FrontConnection, connection: socket.socket, ends: Ends) -> None:
        channel = Channel(
            connection,
            ends,
            is_engine=True,
            on_records=front.on_records,
            on_message=lambda _, descriptors: close_all(*descriptors),
            on_close=lambda reason: self._remove(front, reason),
        )
        front.attach(channel)
        self.connections.add(front)
        self.unused.clear()
        logger.info("front process %d is connected", front.process_id)
        for files in self._files.values():
            front.announce(*files)
        if self.current:
            front.serve(self.current.number)

    def _remove(self, front: FrontConnection, reason: str) -> None:
        if front in self.connections:
            self.connections.discard(front)
            if not self.connections:
                self.unused.set()
            logger.info("front process %d is disconnected: %s", front.process_id, reason)
            front.close()


async def _wait_until_ready(front: FrontConnection, number: int) -> None:
    while front.ready_model < number and not front.closed:
        front.ready.clear()
        await front.ready.wait()


def _require_same_user(connection: socket.socket) -> None:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, user, _ = _PEER_CREDENTIALS.unpack(data)
    if user != os.getuid():
        raise ChannelError(f"a process of user {user}")

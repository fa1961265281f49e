"""A connection between a front and the engine process: two rings in shared memory, and the socket that they came by.

::

    front                                    engine
    connect                              ->  accept
    greeting                             ->
                                         <-  greeting, with the memory and four eventfds
    records through the rings           <->
                                         <-  models, each with the descriptors of its files

The engine makes the memory and seals its size, so that no front can take it away under the engine's hands. The end of
either process closes the socket, which ends the connection at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import socket
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from .records import Record, RecordError, RecordReader
from .ring import RingError, RingReader, RingWriter

logger = logging.getLogger(__name__)

# Size of the memory of each ring; what does not fit is kept by its writer.
RING_BYTES = 4 * 2**20
# Bytes that are taken from a ring before other work of the event loop has its turn.
_READ_BYTES = 64 * 2**10
# A reader that leaves so much unread has hung or was stopped. The connection ends, which frees what is kept for it.
MAX_BACKLOG_BYTES = 256 * 2**20
MAX_MESSAGE_BYTES = 64 * 2**10
_MAGIC = b"polyhead"
_VERSION = 1
_GREETING = Struct("<8sIIQ")


class ChannelError(Exception):
    """The process at the other end does not speak this protocol."""


class Ends(NamedTuple):
    """Descriptors of a connection, in the order in which they are sent."""

    memory: int
    to_engine_data: int
    to_engine_space: int
    to_front_data: int
    to_front_space: int


class Channel:
    """One end of a connection. Event loop only.

    Attributes:
        closed: Whether the connection has ended.
    """

    def __init__(
        self,
        connection: socket.socket,
        ends: Ends,
        *,
        is_engine: bool,
        on_records: Callable[[list[Record]], None],
        on_message: Callable[[bytes, list[int]], None],
        on_close: Callable[[str], None],
    ) -> None:
        """Takes over the socket and the descriptors.

        Args:
            connection: The socket, after the greetings.
            ends: The memory and the eventfds.
            is_engine: Whether this is the engine's end.
            on_records: Receives records. Raises ``RecordError`` for those that are not valid.
            on_message: Receives a message of the socket and its descriptors, which it owns from then on.
            on_close: Called once, with the reason, when the connection ends otherwise than by ``close``.
        """
        self.closed = False
        self._socket = connection
        self._ends = ends
        self._memory = memoryview(mmap.mmap(ends.memory, 2 * RING_BYTES))
        to_engine = (self._memory[:RING_BYTES], ends.to_engine_data, ends.to_engine_space)
        to_front = (self._memory[RING_BYTES:], ends.to_front_data, ends.to_front_space)
        self._writer = RingWriter(*(to_front if is_engine else to_engine))
        self._reader = RingReader(*(to_engine if is_engine else to_front))
        self._on_records, self._on_message, self._on_close = on_records, on_message, on_close
        self._records = RecordReader()
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._data_fd = ends.to_engine_data if is_engine else ends.to_front_data
        self._space_fd = ends.to_front_space if is_engine else ends.to_engine_space
        self._loop.add_reader(self._data_fd, self._guarded, self._read)
        self._loop.add_reader(self._space_fd, self._guarded, self._writer.on_space)
        self._loop.add_reader(connection.fileno(), self._guarded, self._receive)

    def send(self, record: bytes) -> None:
        """Sends a record, together with all others of this step of the event loop."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(record)

    def send_message(self, data: bytes, descriptors: list[int]) -> None:
        """Sends a message through the socket; ends the connection if its buffer is full."""
        self._guarded(lambda: socket.send_fds(self._socket, [data], descriptors))

    def close(self) -> None:
        """Ends the connection."""
        if self.closed:
            return
        self.closed = True
        for fd in (self._data_fd, self._space_fd, self._socket.fileno()):
            self._loop.remove_reader(fd)
        self._socket.close()
        close_all(*self._ends)

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if self.closed:
            return
        self._writer.write(data)
        if self._writer.backlog_bytes > MAX_BACKLOG_BYTES:
            self._end(f"{self._writer.backlog_bytes} bytes are not read")

    def _read(self) -> None:
        if self.closed:
            return
        self._on_records(list(self._records.feed(self._reader.read(_READ_BYTES))))
        if self._reader.available and not self.closed:
            self._loop.call_soon(self._guarded, self._read)

    def _receive(self) -> None:
        data, descriptors, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, len(Ends._fields))
        if not data:
            self._end("the other process has ended")
        elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(*descriptors)
            self._end("a message was cut")
        else:
            self._on_message(data, descriptors)

    def _guarded(self, step: Callable[[], object]) -> None:
        if self.closed:
            return
        try:
            step()
        except (RecordError, RingError, OSError) as error:
            self._end(str(error))
        except BaseException:
            # Records may be lost. A front sends what was not answered over a new connection.
            self._end("unexpected error")
            raise

    def _end(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_close(reason)


def make_ends() -> Ends:
    """Makes the memory and the eventfds of a connection."""
    memory = os.memfd_create("polyhead-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 2 * RING_BYTES)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return Ends(memory, *(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(4)))


def greeting() -> bytes:
    """Returns the first message of either end."""
    return _GREETING.pack(_MAGIC, _VERSION, os.getpid(), RING_BYTES)


def read_greeting(data: bytes) -> int:
    """Checks the first message of the other end and returns its process id.

    Raises:
        ChannelError: It is of another program or of another version.
    """
    if len(data) != _GREETING.size:
        raise ChannelError(f"a greeting of {len(data)} bytes")
    magic, version, process_id, ring_bytes = _GREETING.unpack(data)
    if (magic, version, ring_bytes) != (_MAGIC, _VERSION, RING_BYTES):
        raise ChannelError(f"a greeting of version {version} with rings of {ring_bytes} bytes")
    return int(process_id)


async def receive_ends(connection: socket.socket) -> Ends:
    """Waits for the engine's greeting and returns the descriptors that come with it.

    Raises:
        ChannelError: It is not valid.
        OSError: The connection has ended.
    """
    await _readable(connection)
    data, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, len(Ends._fields))
    try:
        read_greeting(data)
        ends = Ends(*descriptors)
    except (ChannelError, TypeError) as error:
        close_all(*descriptors)
        raise ChannelError(str(error)) from error
    return ends


def close_all(*descriptors: int) -> None:
    """Closes descriptors."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())

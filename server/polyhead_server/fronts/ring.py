"""A pipe in shared memory: bytes go in at one end and come out at the other, in order, without system calls per byte.

Both counts that the two ends must agree on travel through the kernel, as values of two eventfds: the writer adds what
it has written, the reader adds what it has read. So no index lies in shared memory, where the other process could
damage it, and the kernel orders the memory accesses. Each end bounds what it takes from the other.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque


class RingError(Exception):
    """The process at the other end has broken the protocol of the ring."""


class RingWriter:
    """The end that writes. What does not fit is kept until there is space. Not thread-safe.

    Attributes:
        backlog_bytes: Bytes that are kept.
    """

    def __init__(self, memory: memoryview, data_fd: int, space_fd: int) -> None:
        """Starts with an empty ring.

        Args:
            memory: The ring.
            data_fd: Non-blocking eventfd that tells the reader how much was written.
            space_fd: Non-blocking eventfd that tells the writer how much was read.
        """
        self.backlog_bytes = 0
        self._memory = memory
        self._data_fd = data_fd
        self._space_fd = space_fd
        self._free = len(memory)
        self._position = 0
        self._backlog: deque[memoryview] = deque()

    def write(self, data: bytes) -> None:
        """Writes as much as there is space for and keeps the rest."""
        if data:
            self._backlog.append(memoryview(data))
            self.backlog_bytes += len(data)
        self._flush()

    def on_space(self) -> None:
        """Continues with what is kept; called when ``space_fd`` is readable.

        Raises:
            RingError: The reader claims to have read more than was written.
        """
        self._free += _take(self._space_fd)
        if self._free > len(self._memory):
            raise RingError("more was read than was written")
        self._flush()

    def _flush(self) -> None:
        written = 0
        while self._backlog and self._free:
            data = self._backlog[0]
            count = min(len(data), self._free, len(self._memory) - self._position)
            self._memory[self._position : self._position + count] = data[:count]
            self._position = (self._position + count) % len(self._memory)
            self._free -= count
            written += count
            if count == len(data):
                self._backlog.popleft()
            else:
                self._backlog[0] = data[count:]
        if written:
            self.backlog_bytes -= written
            os.eventfd_write(self._data_fd, written)


class RingReader:
    """The end that reads. Not thread-safe."""

    def __init__(self, memory: memoryview, data_fd: int, space_fd: int) -> None:
        """Starts with an empty ring; see ``RingWriter`` for the arguments."""
        self._memory = memory
        self._data_fd = data_fd
        self._space_fd = space_fd
        self._available = 0
        self._position = 0

    def read(self, max_bytes: int) -> bytes:
        """Returns up to so many bytes; empty when none are left.

        Raises:
            RingError: The writer claims to have written more than there is space for.
        """
        self._available += _take(self._data_fd)
        if self._available > len(self._memory):
            raise RingError("more was written than there is space for")
        count = min(self._available, max_bytes)
        if not count:
            return b""
        end = self._position + count
        data = bytes(self._memory[self._position : end])
        if end > len(self._memory):
            data += bytes(self._memory[: end - len(self._memory)])
        self._position = end % len(self._memory)
        self._available -= count
        os.eventfd_write(self._space_fd, count)
        return data

    @property
    def available(self) -> int:
        """Bytes that are known to be left."""
        return self._available


def _take(fd: int) -> int:
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd)
    return 0

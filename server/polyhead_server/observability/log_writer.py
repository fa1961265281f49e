"""Writes log lines without ever making their authors wait for the reader of the log."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

# Bytes of lines that wait for a slow reader. Beyond it lines are dropped.
MAX_WAITING_BYTES = 2**20
# Bytes of one system call. Up to this size, the lines of workers that share a pipe never mix.
_MAX_WRITE_BYTES = select.PIPE_BUF


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own.

    ``write`` may be called from any thread and never blocks. While nobody reads the other end of the descriptor, lines
    wait up to a limit, and further ones are dropped and counted. Once the lines flow again, one line states their
    number.
    """

    def __init__(
        self, descriptor: int, dropped_notice: Callable[[int], str], max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        """Starts the thread.

        Args:
            descriptor: Where to write; may be a pipe that nobody reads.
            dropped_notice: Returns the line that states a number of dropped lines.
            max_waiting_bytes: Bytes of lines that may wait.
        """
        self._descriptor = descriptor
        self._dropped_notice = dropped_notice
        self._max_waiting_bytes = max_waiting_bytes
        # Guards all fields below.
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._writing = False
        self._dropped = 0
        self._reported = 0
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Number of lines dropped so far."""
        return self._dropped

    def write(self, line: str) -> None:
        """Appends a line, given without its line break, or drops it if too much is waiting."""
        data = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if self._waiting_bytes + len(data) > self._max_waiting_bytes:
                self._dropped += 1
                return
            self._lines.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything is written, at most ``timeout_s``; returns whether it is."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._lines or self._writing:
                if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    return False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                data, lines = self._take()
                self._writing = True
            written = self._write(data)
            with self._changed:
                self._waiting_bytes -= len(data)
                self._dropped += 0 if written else lines
                if written and not self._lines and self._reported < self._dropped:
                    notice = self._dropped_notice(self._dropped - self._reported).encode() + b"\n"
                    self._reported = self._dropped
                    self._lines.append(notice)
                    self._waiting_bytes += len(notice)
                self._writing = False
                self._changed.notify_all()

    def _take(self) -> tuple[bytes, int]:
        """Takes the lines of one system call; returns them and their number."""
        taken = [self._lines.popleft()]
        size = len(taken[0])
        while self._lines and size + len(self._lines[0]) <= _MAX_WRITE_BYTES:
            size += len(self._lines[0])
            taken.append(self._lines.popleft())
        return b"".join(taken), len(taken)

    def _write(self, data: bytes) -> bool:
        """Writes everything, however long it takes; returns False if the other end is closed or the disk is full."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True

"""The serving process's side of a shadow: sends a share of the texts, with their answers, to the candidate's process.

Nothing here waits. What the candidate has not read in time is dropped and counted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Item, Message, OutcomeFuture, RequestOptions, Result, Truncation

from .samples import MAX_PACKET_BYTES, Sample, Totals, encode, values_of
from .selection import is_selected

logger = logging.getLogger(__name__)

# Packets that wait in this process for a candidate that is busy: the texts of some large messages.
MAX_BACKLOG_BYTES = 2 * 2**20
# The system has no room for a packet: it is larger than the buffer of the socket, or the kernel is short of memory.
_NO_ROOM = {errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM}


class Sampler:
    """Observes the answers of a pipeline. Event loop only.

    Attributes:
        answered: Texts that were answered.
        selected: Those of them that belong to the share.
        dropped: Those of the selected ones that were not sent.
    """

    def __init__(self, path: Path, share: float, max_windows: int) -> None:
        """Connects to the candidate's process.

        Args:
            path: Its socket.
            share: Share of the texts, 0 to 1.
            max_windows: Largest number of windows of a text.

        Raises:
            OSError: It does not listen.
        """
        self.answered = self.selected = self.dropped = 0
        self._share = share
        self._max_windows = max_windows
        self._sender = os.getpid() << 32 | id(self) & 0xFFFFFFFF
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def observe(self, model: Model, message: Message, futures: Sequence[OutcomeFuture]) -> None:
        """Receives a message and the futures of its first items; see ``Intake.observers``."""
        for item, future in zip(message.items, futures, strict=False):
            if isinstance(item, Item):
                chosen = is_selected(item.text, self._share)
                on_done = partial(self._on_answer, model, item.text, message.options) if chosen else self._count
                future.add_done_callback(on_done)

    def close(self) -> None:
        """Ends the connection; what it has not sent is lost."""
        if self._socket:
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._backlog.clear()
            self._backlog_bytes = 0

    def _count(self, future: OutcomeFuture) -> None:
        self.answered += not future.cancelled() and isinstance(future.result(), Result)

    def _on_answer(self, model: Model, text: str, options: RequestOptions, future: OutcomeFuture) -> None:
        if self._socket is None or future.cancelled() or not isinstance(outcome := future.result(), Result):
            return
        self.answered += 1
        self.selected += 1
        sample = Sample(
            bytes.fromhex(model.source.digest),
            text,
            options.prompt,
            self._max_windows if options.truncation is Truncation.WINDOW else 1,
            outcome.timings.total_ns,
            outcome.timings.compute_ns,
            outcome.timings.batch_items,
            values_of(outcome.output),
        )
        packet = encode(sample, Totals(self._sender, self.answered, self.selected, self.dropped))
        if len(packet) > MAX_PACKET_BYTES or self._backlog_bytes + len(packet) > MAX_BACKLOG_BYTES:
            self.dropped += 1
        elif self._backlog or not self._sent(self._socket, packet):
            self._keep(packet)

    def _keep(self, packet: bytes) -> None:
        if self._socket:
            if not self._backlog:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            self._backlog.append(packet)
            self._backlog_bytes += len(packet)

    def _flush(self) -> None:
        while self._socket and self._backlog and self._sent(self._socket, self._backlog[0]):
            if self._backlog:
                self._backlog_bytes -= len(self._backlog.popleft())
        if self._socket and not self._backlog:
            self._loop.remove_writer(self._socket.fileno())

    def _sent(self, connection: socket.socket, packet: bytes) -> bool:
        """Sends a packet, or drops one that cannot be sent; returns False if it must wait."""
        try:
            connection.send(packet)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_ROOM:
                self.dropped += 1
            else:
                logger.warning("the candidate's process is gone: %s", error)
                self.close()
        return True

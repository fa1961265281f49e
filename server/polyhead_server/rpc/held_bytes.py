"""Bounds the bytes that the server holds for its clients: unread responses and incomplete requests.

gRPC keeps a response until its client grants HTTP/2 flow-control window for it, and the parts of a request message
until it is whole. Neither has a limit in gRPC, except that a stream which is not read stops itself.

- A response counts from its encoding until its call is done. A call whose response exceeds a limit is rejected.
- gRPC does not tell how much of a request has arrived. The kernel tells how many bytes a connection has received;
  those that were not delivered in messages, beyond an allowance for protocol overhead, belong to incomplete messages.
  They are sampled, and a connection beyond its limit is closed, as is one that sends much besides messages.

If all connections together reach the limit, the connection that holds the most is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from grpc import aio

from polyhead_server.background import BackgroundTasks
from polyhead_server.errors import OverloadedError

from . import sockets
from .active_calls import when_done
from .sockets import Transferred

logger = logging.getLogger(__name__)

_Context = aio.ServicerContext[Any, Any]

# Part of the limit that one connection may hold.
_CONNECTION_SHARE = 0.25
# Limit of incomplete messages on a connection without a call that may send large messages.
_SMALL_BYTES = 256 * 2**10
# Allowances for protocol overhead: a fraction of messages (frames, TLS records), bytes for each message and each call
# besides its metadata, and a fraction of what was sent (its acknowledgements).
_MESSAGE_OVERHEAD = 1.05
_BYTES_PER_MESSAGE = 64
_BYTES_PER_CALL = 1024
_SENT_OVERHEAD = 0.02
_SAMPLE_INTERVAL_S = 1.0
# Limit for bytes of anything besides messages between two samples, such as a flood of HTTP/2 frames, on a connection
# without a call that may send large messages.
_MAX_EXCESS_BYTES = 16 * 2**20
# Sampling takes at most this part of the time: with very many connections it becomes less frequent.
_MAX_SAMPLING = 0.02
_LOG_INTERVAL_S = 10.0
# Samples in which what calls received is distinguished by their age.
_MAX_INTERVALS = 30


class Connection:
    """What is held for one connection.

    Attributes:
        peer: ADDRESS:PORT of the client.
        calls: Calls in progress, oldest first.
        large_calls: Those of them that may send large messages.
        unread_bytes: Bytes of responses that have not been sent yet.
        incomplete_bytes: Estimated bytes of incomplete request messages.
        closing: Whether it is being closed.
        expected_bytes: Received bytes since the last sample that belong to no incomplete message.
        samples: Number of samples.
        intervals: Received bytes beyond the expected ones between the last samples.
    """

    __slots__ = (
        "calls",
        "closing",
        "expected_bytes",
        "incomplete_bytes",
        "intervals",
        "large_calls",
        "peer",
        "samples",
        "transferred",
        "unread_bytes",
    )

    def __init__(self, peer: str, transferred: Transferred) -> None:
        self.peer = peer
        self.calls: dict[_Call, None] = {}
        self.large_calls = self.unread_bytes = self.samples = 0
        self.intervals: deque[float] = deque(maxlen=_MAX_INTERVALS)
        self.incomplete_bytes = self.expected_bytes = 0.0
        self.closing = False
        self.transferred = transferred

    @property
    def held_bytes(self) -> float:
        """Bytes held in both directions."""
        return self.unread_bytes + self.incomplete_bytes

    def sample(self, transferred: Transferred, max_message_bytes: int) -> float:
        """Updates ``incomplete_bytes`` from the kernel's counts.

        Returns:
            Bytes received since the last sample beyond those of messages and their overhead.
        """
        received = transferred.received - self.transferred.received
        expected = self.expected_bytes + _SENT_OVERHEAD * (transferred.sent - self.transferred.sent)
        excess = received - expected
        self.samples += 1
        self.intervals.append(excess)
        # Parts of calls that have ended are no longer held: the others began later than what came for those. One more
        # interval, because a call may begin after its first bytes have come.
        oldest = next(iter(self.calls), None)
        recent = (self.samples - oldest.samples if oldest else 0) + 1
        if recent < len(self.intervals):
            self.incomplete_bytes = 0.0
            for one in itertools.islice(self.intervals, len(self.intervals) - recent, None):
                self.incomplete_bytes = max(0.0, self.incomplete_bytes + one)
        else:
            self.incomplete_bytes = max(0.0, self.incomplete_bytes + excess)
        self.incomplete_bytes = min(self.incomplete_bytes, len(self.calls) * max_message_bytes)
        self.transferred, self.expected_bytes = transferred, 0.0
        return excess


class _Call:
    """A call in progress.

    Attributes:
        connection: Its connection.
        large: Whether it may send large messages.
        samples: Number of samples of the connection before the call.
        unread_bytes: Bytes of its response.
    """

    __slots__ = ("connection", "large", "samples", "unread_bytes")

    def __init__(self, connection: Connection, *, large: bool) -> None:
        self.connection = connection
        self.large = large
        self.samples = connection.samples
        self.unread_bytes = 0


# The call that the current task serves.
_CALL: ContextVar[_Call | None] = ContextVar("polyhead_held_call", default=None)


def on_message(size: int) -> None:
    """Counts a message that was delivered to the current call."""
    if call := _CALL.get():
        call.connection.expected_bytes += _MESSAGE_OVERHEAD * size + _BYTES_PER_MESSAGE


class HeldBytes:
    """The bytes that are held for all connections. Event loop only."""

    def __init__(
        self,
        max_bytes: int,
        max_message_bytes: int,
        *,
        sample: Callable[[int], Mapping[str, Transferred]] = sockets.transferred,
        close: Callable[[str, int], None] = sockets.close,
    ) -> None:
        """Starts without connections.

        Args:
            max_bytes: Limit for all connections; one connection may hold a quarter of it.
            max_message_bytes: Maximum size of a message.
            sample: Returns the transferred bytes of every connection to a port; called in a thread.
            close: Closes the connection of a peer to a port; called in a thread.
        """
        self._max_bytes = max_bytes
        self._max_connection_bytes = round(max_bytes * _CONNECTION_SHARE)
        self._max_message_bytes = max_message_bytes
        self._sample, self._close = sample, close
        self._port = 0
        self._connections: dict[str, Connection] = {}
        self._last_sample: Mapping[str, Transferred] = {}
        self._unread_bytes = 0
        self._closing = BackgroundTasks()
        self._logged_at = float("-inf")

    @property
    def unread_bytes(self) -> int:
        """Bytes of responses that have not been sent yet."""
        return self._unread_bytes

    def begin(self, context: _Context, metadata_bytes: int, *, large: bool) -> None:
        """Counts a call that begins, until it is done.

        Args:
            context: Context of the call. The current task, and tasks that it starts, serve this call.
            metadata_bytes: Size of the call's metadata.
            large: Whether the call may send large messages.
        """
        peer = sockets.normalized(context.peer())
        if (connection := self._connections.get(peer)) is None:
            # A connection that the last sample does not contain is new.
            connection = Connection(peer, self._last_sample.get(peer, Transferred(0, 0)))
            self._connections[peer] = connection
        call = _Call(connection, large=large)
        connection.calls[call] = None
        connection.large_calls += large
        connection.expected_bytes += _BYTES_PER_CALL + metadata_bytes
        _CALL.set(call)
        when_done(context, lambda: self._end(call))

    def require_room(self) -> None:
        """Checks, before anything is computed, that a response may be held for the current call's connection.

        Raises:
            OverloadedError: The client has not read too many responses.
        """
        call = _CALL.get()
        if call and call.connection.unread_bytes >= self._max_connection_bytes:
            raise OverloadedError.unread(self._max_connection_bytes)

    def hold(self, size: int) -> None:
        """Counts the response of the current call until the call is done.

        It is done when the last byte of the response has been sent, or its client is gone.

        Raises:
            OverloadedError: The response exceeds a limit and must not be sent.
        """
        if call := _CALL.get():
            self._require_room(call.connection, size)
            self._add(call, size)

    async def watch(self, port: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Samples the connections and closes those beyond their limits; never returns.

        Args:
            port: Port that gRPC listens on. Connections to other ports, such as that of HTTP, are none of its own.
            sleep: Waits for a number of seconds.
        """
        self._port = port
        duration_s = 0.0
        while True:
            await sleep(max(_SAMPLE_INTERVAL_S, duration_s / _MAX_SAMPLING))
            started = time.monotonic()
            try:
                sample = await asyncio.to_thread(self._sample, port)
            except OSError as error:
                self._warn("the connections cannot be sampled: %s", error)
                continue
            duration_s = time.monotonic() - started
            self.check(sample)

    def check(self, sample: Mapping[str, Transferred]) -> None:
        """Closes the connections that a sample shows to be beyond their limits."""
        previous, self._last_sample = self._last_sample, sample
        for peer, transferred in sample.items():
            connection = self._connections.get(peer) or Connection(peer, previous.get(peer, Transferred(0, 0)))
            excess = connection.sample(transferred, self._max_message_bytes)
            limit = self._max_connection_bytes if connection.large_calls else _SMALL_BYTES
            if connection.incomplete_bytes > limit:
                self._start_closing(connection, f"it sent more than {limit} bytes of incomplete messages")
            elif excess > _MAX_EXCESS_BYTES and not connection.large_calls:
                self._start_closing(connection, f"it sent {excess:.0f} bytes that belong to no message")
        # Nothing is held for a connection without calls.
        self._connections = {peer: one for peer, one in self._connections.items() if one.calls}
        if sum(connection.held_bytes for connection in self._connections.values()) > self._max_bytes:
            self._start_closing(self._largest(), _MOST_HELD)

    def _require_room(self, connection: Connection, size: int) -> None:
        # A response that is larger than the limit is sent on its own.
        if connection.unread_bytes and connection.unread_bytes + size > self._max_connection_bytes:
            raise OverloadedError.unread(self._max_connection_bytes)
        if self._unread_bytes and self._unread_bytes + size > self._max_bytes and not self._closing:
            largest = self._largest()
            if largest.unread_bytes < 2 * (connection.unread_bytes + size):
                raise OverloadedError.unread(self._max_bytes)
            self._start_closing(largest, _MOST_HELD)

    def _add(self, call: _Call, size: int) -> None:
        call.unread_bytes += size
        call.connection.unread_bytes += size
        self._unread_bytes += size

    def _end(self, call: _Call) -> None:
        self._add(call, -call.unread_bytes)
        del call.connection.calls[call]
        call.connection.large_calls -= call.large

    def _largest(self) -> Connection:
        return max(self._connections.values(), key=lambda connection: (not connection.closing) * connection.held_bytes)

    def _start_closing(self, connection: Connection, problem: str) -> None:
        if connection.closing:
            return
        connection.closing = True
        self._warn("closing the connection of %s: %s", connection.peer, problem)
        self._closing.start(self._close_connection(connection))

    async def _close_connection(self, connection: Connection) -> None:
        try:
            await asyncio.to_thread(self._close, connection.peer, self._port)
        except OSError as error:
            connection.closing = False
            self._warn("the connection of %s cannot be closed: %s", connection.peer, error)

    def _warn(self, message: str, *arguments: object) -> None:
        if (now := time.monotonic()) > self._logged_at + _LOG_INTERVAL_S:
            self._logged_at = now
            logger.warning(message, *arguments)


_MOST_HELD = "all connections together hold too many bytes of unread responses and incomplete messages, it the most"

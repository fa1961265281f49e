"""The standard gRPC health service: NOT_SERVING until the golden texts pass, and again from SIGTERM on.

It answers for two names. The whole server, "", is for liveness probes: NOT_SERVING means that the process should be
restarted. The inference service, by its full name, is for load balancers and readiness probes: NOT_SERVING means that
it should receive no calls. A server that an operator has drained is alive and receives no calls.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead_server.errors import WatchEndedError

from . import service_names, sockets

_Context = aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse
# The type stubs do not know List yet.
_messages: Any = health_pb2

# The service requires no API key, so what its callers can make the server hold is bounded. A gRPC client has one watch
# for each connection and service name; one that is ended begins again.
_MAX_WATCHES_PER_CONNECTION = 100
_MAX_WATCHES = 10_000
_MAX_WATCH_S = 3600.0
_WRITE_TIMEOUT_S = 60.0


class Health(health_pb2_grpc.HealthServicer):
    """The health service of one server process. Event loop only.

    The servicer of ``grpc_health`` holds a lock while it writes to a watcher, and takes the same lock to change a
    status. There a client that watches and does not read could keep the server from becoming ready or from draining.
    This one never waits for a watcher.

    Attributes:
        serving: Whether the inference service last reported SERVING.
        alive: Whether the whole server last reported SERVING.
    """

    def __init__(
        self,
        *,
        max_watches: int = _MAX_WATCHES,
        max_watches_per_connection: int = _MAX_WATCHES_PER_CONNECTION,
        max_watch_s: float = _MAX_WATCH_S,
        write_timeout_s: float = _WRITE_TIMEOUT_S,
    ) -> None:
        """Starts as NOT_SERVING.

        Args:
            max_watches: Maximum number of watches; one more ends the oldest watch of the connection with the most.
            max_watches_per_connection: Maximum number of watches of a connection; one more ends its oldest.
            max_watch_s: Maximum duration of a watch, shortened by a random 0 to 10 %.
            write_timeout_s: Seconds in which a client must read a status.
        """
        self.serving = self.alive = False
        self._max_watches = max_watches
        self._max_watches_per_connection = max_watches_per_connection
        self._max_watch_s = max_watch_s
        self._write_timeout_s = write_timeout_s
        # Set, and replaced by a new one, at each change.
        self._changed = asyncio.Event()
        # Time limits of the watches by connection, oldest first.
        self._watches: dict[str, deque[asyncio.Timeout]] = {}
        self._watch_count = 0

    def add_to(self, server: aio.Server) -> None:
        """Registers the health service with a server that has not started yet."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def set(self, *, serving: bool, alive: bool) -> None:
        """Publishes a new state to all probes and watchers.

        Args:
            serving: Whether clients should send calls.
            alive: Whether the process has a working model and is not shutting down.
        """
        self.serving, self.alive = serving, alive
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: _Context) -> Any:  # noqa: N802
        """Returns the status of one name."""
        status = self._statuses().get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return _Response(status=status)

    async def List(self, _: Any, __: _Context) -> Any:  # noqa: N802
        """Returns the status of every name."""
        statuses = {name: _Response(status=status) for name, status in self._statuses().items()}
        return _messages.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: _Context) -> None:  # noqa: N802
        """Sends the status of one name now and after each change, until the client or a limit ends the call.

        Raises:
            WatchEndedError: A limit ended it.
        """
        # Flow control does not hold headers back. Without them, a status could not follow a message that is held back.
        await context.send_initial_metadata(())
        watch = _Watch(context)
        max_s = self._max_watch_s * random.uniform(0.9, 1.0)  # noqa: S311 - not a secret
        try:
            async with asyncio.timeout(max_s) as limit:
                self._watches.setdefault(watch.peer, deque()).append(limit)
                self._watch_count += 1
                try:
                    self._end_excess(watch.peer)
                    await self._send_changes(request.service, watch)
                finally:
                    self._remove(watch.peer, limit)
        except TimeoutError:
            await watch.end()

    def _end_excess(self, peer: str) -> None:
        # All connections through a Unix socket look alike.
        distinct = not peer.startswith("unix:")
        if distinct and len(self._watches[peer]) > self._max_watches_per_connection:
            self._end_oldest(peer)
        elif self._watch_count > self._max_watches:
            self._end_oldest(max(self._watches, key=lambda peer: len(self._watches[peer])))

    def _end_oldest(self, peer: str) -> None:
        limit = self._watches[peer][0]
        self._remove(peer, limit)
        # A time that has passed takes effect in the next step of the event loop.
        limit.reschedule(0.0)

    def _remove(self, peer: str, limit: asyncio.Timeout) -> None:
        watches = self._watches.get(peer, deque())
        if limit in watches:
            watches.remove(limit)
            self._watch_count -= 1
            if not watches:
                del self._watches[peer]

    async def _send_changes(self, name: str, watch: _Watch) -> None:
        sent = None
        while True:
            # Taken before the status is read, so that a change during the write is not missed.
            changed = self._changed
            status = self._statuses().get(name, _Response.SERVICE_UNKNOWN)
            if status != sent:
                async with asyncio.timeout(self._write_timeout_s):
                    await watch.write(_Response(status=status))
                sent = status
            await changed.wait()

    def _statuses(self) -> dict[str, int]:
        states = {"": self.alive, service_names.INFERENCE: self.serving}
        return {name: _Response.SERVING if good else _Response.NOT_SERVING for name, good in states.items()}


class _Watch:
    """The server's end of a watch.

    Attributes:
        peer: Its connection, as gRPC names it.
    """

    def __init__(self, context: _Context) -> None:
        self.peer = context.peer()
        self._context = context
        self._writing = False

    async def write(self, response: Any) -> None:
        self._writing = True
        await self._context.write(response)
        self._writing = False

    async def end(self) -> None:
        """Ends the watch with a status, or closes a connection whose client does not read.

        Raises:
            WatchEndedError: The status.
        """
        if not self._writing:
            raise WatchEndedError
        # A status would wait behind the message that is not read. gRPC cancels the call when its connection is closed.
        await asyncio.to_thread(sockets.close, sockets.normalized(self.peer))
        await asyncio.get_running_loop().create_future()

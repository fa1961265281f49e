"""The standard gRPC health service: NOT_SERVING until the golden texts pass, and again from SIGTERM on.

It answers for two names. The whole server, "", is for liveness probes: NOT_SERVING means that the process should be
restarted. The inference service, by its full name, is for load balancers and readiness probes: NOT_SERVING means that
it should receive no calls. A server that an operator has drained is alive and receives no calls.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from . import service_names

_Context = aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse
# The type stubs do not know List yet.
_messages: Any = health_pb2


class Health(health_pb2_grpc.HealthServicer):
    """The health service of one server process. Event loop only.

    The servicer of ``grpc_health`` holds a lock while it writes to a watcher, and takes the same lock to change a
    status. There a client that watches and does not read could keep the server from becoming ready or from draining.
    This one never waits for a watcher.

    Attributes:
        serving: Whether the inference service last reported SERVING.
        alive: Whether the whole server last reported SERVING.
    """

    def __init__(self) -> None:
        self.serving = self.alive = False
        # Set, and replaced by a new one, at each change.
        self._changed = asyncio.Event()

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
        """Sends the status of one name now and after each change, until the client ends the call."""
        sent = None
        while True:
            # Taken before the status is read, so that a change during the write is not missed.
            changed = self._changed
            status = self._statuses().get(request.service, _Response.SERVICE_UNKNOWN)
            if status != sent:
                await context.write(_Response(status=status))
                sent = status
            await changed.wait()

    def _statuses(self) -> dict[str, int]:
        states = {"": self.alive, service_names.INFERENCE: self.serving}
        return {name: _Response.SERVING if good else _Response.NOT_SERVING for name, good in states.items()}

"""The standard gRPC health service: NOT_SERVING until the golden texts pass, and again from SIGTERM on.

It answers for two names. The whole server, "", is for liveness probes: NOT_SERVING means that the process should be
restarted. The inference service, by its full name, is for load balancers and readiness probes: NOT_SERVING means that
it should receive no calls. A server that an operator has drained is alive and receives no calls.
"""

from __future__ import annotations

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from . import service_names


class Health:
    """The health service of one server process.

    Attributes:
        serving: Whether the inference service last reported SERVING.
        alive: Whether the whole server last reported SERVING.
    """

    def __init__(self) -> None:
        self.serving = self.alive = False
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: aio.Server) -> None:
        """Registers the health service with a server that has not started yet."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool, alive: bool) -> None:
        """Publishes a new state to all probes and watchers.

        Args:
            serving: Whether clients should send calls.
            alive: Whether the process has a working model and is not shutting down.
        """
        self.serving, self.alive = serving, alive
        statuses = health_pb2.HealthCheckResponse
        for name, good in ((service_names.INFERENCE, serving), ("", alive)):
            await self._servicer.set(name, statuses.SERVING if good else statuses.NOT_SERVING)

"""The standard health service: NOT_SERVING until the golden texts were answered right, and again from SIGTERM on."""

from __future__ import annotations

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .service import NAME


class Health:
    """What load balancers and probes ask: of the whole server (""), and of the inference service by its name.

    Attributes:
        serving: What was said last.
    """

    def __init__(self) -> None:
        self.serving = False
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: aio.Server) -> None:
        """Answers on a server that has not started yet."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool) -> None:
        """Says from now on whether the server answers."""
        self.serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", NAME):
            await self._servicer.set(name, status)

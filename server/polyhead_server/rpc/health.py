"""The standard health service: NOT_SERVING until the golden texts were answered right, and again from SIGTERM on.

The whole server ("") is for whoever starts it again when it is no good; the inference service, by its name, for
whoever sends it calls. A server that an operator has drained is well and gets no calls.
"""

from __future__ import annotations

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .inference_service import NAME


class Health:
    """What load balancers and probes ask.

    Attributes:
        serving: What was said last of the inference service.
        alive: What was said last of the whole server.
    """

    def __init__(self) -> None:
        self.serving = self.alive = False
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: aio.Server) -> None:
        """Answers on a server that has not started yet."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool, alive: bool) -> None:
        """Says from now on how the server is.

        Args:
            serving: Whether it is to be sent calls.
            alive: Whether it has a model that answers, and goes on.
        """
        self.serving, self.alive = serving, alive
        statuses = health_pb2.HealthCheckResponse
        for name, good in ((NAME, serving), ("", alive)):
            await self._servicer.set(name, statuses.SERVING if good else statuses.NOT_SERVING)

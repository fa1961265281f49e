"""The deployment: a replica's server with the methods that Ray Serve calls.

Its streams are asynchronous generators themselves: Ray Serve would run a function that returns one in another thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from polyhead_server.rpc import service_names

from .arguments import Arguments
from .handler_calls import EncodedResponse
from .replica_server import ReplicaServer

if TYPE_CHECKING:
    from polyhead_server.http.api import App

_Stream = AsyncIterator[EncodedResponse]


@serve.ingress()
class Replica:
    """One replica of the deployment. Its RPCs have the names of the methods in the protocol, which Ray Serve calls."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Loads the model.

        Raises:
            StartupError: The model cannot be served; Ray Serve reports it as the reason for a failed deployment.
        """
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
        self._server = ReplicaServer(arguments.settings(max(1, round(cores))))
        await self._server.start()

    def __serve_build_asgi_app__(self) -> App:
        """Returns the HTTP API."""
        return self._server.http_app()

    async def Analyze(self, data: bytes, grpc_context: RayServegRPCContext) -> EncodedResponse:  # noqa: N802
        """Answers a message."""
        return await self._unary("Analyze", data, grpc_context)

    async def GetModelInfo(self, data: bytes, grpc_context: RayServegRPCContext) -> EncodedResponse:  # noqa: N802
        """Describes the model."""
        return await self._unary("GetModelInfo", data, grpc_context)

    async def Check(self, data: bytes, grpc_context: RayServegRPCContext) -> EncodedResponse:  # noqa: N802
        """Answers ``grpc.health.v1.Health/Check``."""
        return await self._server.calls.unary(f"/{service_names.HEALTH}/Check", data, grpc_context)

    async def StreamAnalyze(self, messages: gRPCInputStream, grpc_context: RayServegRPCContext) -> _Stream:  # noqa: N802
        """Answers a stream with every task."""
        async for response in self._stream("StreamAnalyze", messages, grpc_context):
            yield response

    async def StreamEmbed(self, messages: gRPCInputStream, grpc_context: RayServegRPCContext) -> _Stream:  # noqa: N802
        """Answers a stream with embeddings."""
        async for response in self._stream("StreamEmbed", messages, grpc_context):
            yield response

    async def StreamClassify(self, messages: gRPCInputStream, grpc_context: RayServegRPCContext) -> _Stream:  # noqa: N802
        """Answers a stream with classes."""
        async for response in self._stream("StreamClassify", messages, grpc_context):
            yield response

    async def StreamSentiment(self, messages: gRPCInputStream, grpc_context: RayServegRPCContext) -> _Stream:  # noqa: N802
        """Answers a stream with sentiments."""
        async for response in self._stream("StreamSentiment", messages, grpc_context):
            yield response

    async def check_health(self) -> None:
        """Raises if the pipeline cannot answer any more; Ray Serve then replaces the replica."""
        await self._server.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns what the autoscaling policy reads."""
        return self._server.autoscaling_stats()

    async def __del__(self) -> None:
        """Ends the server, after Ray Serve has waited for the calls in progress."""
        if server := getattr(self, "_server", None):
            await server.close()

    async def _unary(self, name: str, data: bytes, context: RayServegRPCContext) -> EncodedResponse:
        return await self._server.calls.unary(f"/{service_names.INFERENCE}/{name}", data, context)

    def _stream(self, name: str, messages: gRPCInputStream, context: RayServegRPCContext) -> _Stream:
        return self._server.calls.stream(f"/{service_names.INFERENCE}/{name}", messages, context)

"""``polyhead.v1.AdminService`` on an address of its own: what is asked of one process is done by all that serve.

Beside it, for the same readers: the health service, and channelz, which tells of the connections of this process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc, item_pb2

from polyhead_server.addresses import exclusive, private_files
from polyhead_server.errors import StartupError
from polyhead_server.json_types import Values
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.security.tls import Certificates, add_port
from polyhead_server.settings import Settings

from .health import Health

logger = logging.getLogger(__name__)

NAME = pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

# Asks all processes of a server to do something, and returns the answer of each.
Ask = Callable[[str, Values], Awaitable[list[Values]]]

_Context = aio.ServicerContext[Any, Any]
# Seconds for the last answer to leave.
_FLUSH_S = 1.0


class AdminServer:
    """The listener of the admin service: open in one process of a server, which may change."""

    def __init__(self, settings: Settings, ask: Ask, health: Health, *, shares_port: bool) -> None:
        """Prepares it.

        Args:
            settings: Say where it listens, if at all, and which keys it wants.
            ask: Reaches all processes.
            health: Is answered here too, for those who reach only this address.
            shares_port: Whether a supervisor keeps the port for its workers.
        """
        self._settings = settings
        self._address = settings.admin_listen
        self._ask = ask
        self._health = health
        self._shares_port = shares_port
        self._opened: contextlib.AsyncExitStack | None = None

    async def open(self) -> None:
        """Listens.

        Raises:
            StartupError: The address is taken.
        """
        if not self._address or self._opened:
            return
        async with contextlib.AsyncExitStack() as stack:
            unshared = not self._shares_port or self._address.startswith("unix:")
            address = stack.enter_context(exclusive(self._address)) if unshared else self._address
            # No name: each of these services parses its messages itself, and may fail to.
            interceptors = [*AuthInterceptor.from_settings(self._settings), ErrorInterceptor("")]
            server = aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", int(self._shares_port))])
            stack.push_async_callback(server.stop, _FLUSH_S)
            admin_service_pb2_grpc.add_AdminServiceServicer_to_server(_AdminServicer(self._ask), server)
            self._health.add_to(server)
            channelz.add_channelz_servicer(server)
            names = (NAME, "grpc.channelz.v1.Channelz", "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            await listen(server, address)
            logger.info("the admin service listens on %s", address)
            self._opened = stack.pop_all()

    async def close(self) -> None:
        """Stops listening."""
        if self._opened:
            opened, self._opened = self._opened, None
            await opened.aclose()


async def listen(server: aio.Server, address: str, certificates: Certificates | None = None) -> str:
    """Starts a server on an address, with TLS if there are certificates; returns the same with the port that it got.

    Raises:
        StartupError: It is taken.
    """
    try:
        with private_files():
            port = add_port(server, address, certificates)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}; is another server running there?") from error
    await server.start()
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


class _AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The RPCs."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def Reload(self, request: pb2.ReloadRequest, _: _Context) -> pb2.ReloadResponse:  # noqa: N802
        answers = await self._ask("reload", {"force": request.force})
        return pb2.ReloadResponse(workers=map(_worker_reload, answers))

    async def Drain(self, _: pb2.DrainRequest, __: _Context) -> pb2.DrainResponse:  # noqa: N802
        await self._ask("drain", {})
        return pb2.DrainResponse()

    async def GetStats(self, _: pb2.GetStatsRequest, __: _Context) -> pb2.GetStatsResponse:  # noqa: N802
        answers = await self._ask("stats", {})
        return pb2.GetStatsResponse(workers=map(_worker_stats, answers))


def _worker_reload(answer: Values) -> pb2.WorkerReload:
    heads = [item_pb2.HeadFingerprint(head=head, fingerprint=value) for head, value in answer["heads"].items()]
    return pb2.WorkerReload(
        process_id=answer["process_id"],
        model_id=answer["model_id"],
        fingerprints=item_pb2.Fingerprints(embedding_space=answer["embedding_space"], heads=heads),
    )


def _worker_stats(answer: Values) -> pb2.WorkerStats:
    """Statistics as a message; its durations come in seconds."""
    fields = pb2.WorkerStats.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {
        name: _duration(value) if fields[name].message_type is Duration.DESCRIPTOR else value
        for name, value in answer.items()
    }
    return pb2.WorkerStats(**values)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration

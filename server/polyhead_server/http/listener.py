"""Listens for HTTP on the event loop of the gRPC server, and drains with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from polyhead_server import addresses

from .upgrades import IgnoresUpgrades

# Bytes of a request's line and headers.
_MAX_HEADER_BYTES = 32 * 2**10
# Seconds from the first byte of a request to the end of its headers, and from a connection to its first byte.
_HEADER_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 75

# Called with the scope, ``receive`` and ``send`` of ASGI.
Application = Callable[[Any, Any, Any], Awaitable[None]]

# It would log a line for each malformed request; clients without a key could fill the log.
logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)


class _Protocol(IgnoresUpgrades):
    """uvicorn's protocol with bounds on headers, and with an end of the work for a client that has gone."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app = _cancelled_with(self, self.app)
        self.running: asyncio.Task[Any] | None = None
        self._in_headers = True
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(_HEADER_TIMEOUT_S, self._close)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        # Checked afterwards: what came may have completed the headers, as it mostly does.
        if self._in_headers and self._header_bytes:
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._close()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(_HEADER_TIMEOUT_S, self._close)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.body_follows:
            return
        super().on_message_complete()
        self._in_headers, self._header_bytes = True, 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self.running:
            self.running.cancel()

    def _stop_timer(self) -> None:
        if self._header_timer:
            self._header_timer.cancel()
            self._header_timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _cancelled_with(protocol: _Protocol, app: Any) -> Application:
    """Wraps the application so that the loss of the connection cancels the call in progress."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        protocol.running = asyncio.current_task()
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not protocol.cycle.disconnected:
                raise
        finally:
            protocol.running = None

    return run


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpListener:
    """The HTTP listener of one process."""

    def __init__(self, app: Application, context: ssl.SSLContext | None, *, max_connections: int) -> None:
        """Prepares the listener.

        Args:
            app: The application.
            context: TLS; None for plaintext.
            max_connections: Number of connections beyond which calls are answered 503.
        """
        config = uvicorn.Config(
            app,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # From this number of connections on, uvicorn refuses.
            limit_concurrency=max_connections + 1,
        )
        config.load()
        config.ssl = context
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def listen(self, address: str, *, shares_port: bool) -> str:
        """Starts to listen.

        Args:
            address: HOST:PORT or unix:PATH.
            shares_port: Whether other processes listen on the same port.

        Returns:
            The address with the port that the listener got.

        Raises:
            StartupError: The address is taken or does not exist.
        """
        sockets = addresses.listening_sockets(address, shares_port=shares_port)
        self._task = asyncio.create_task(self._server.serve(sockets))
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{sockets[0].getsockname()[1]}"

    async def close(self, timeout_s: float) -> None:
        """Closes idle connections, lets calls in progress end, and cancels them after the timeout."""
        if self._task is None:
            return
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout_s))
        await self._task

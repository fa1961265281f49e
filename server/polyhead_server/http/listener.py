"""Listens for HTTP on the event loop of the gRPC server, and drains with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.flow_control import service_unavailable

from polyhead_server import addresses

from .upgrades import IgnoresUpgrades

# Bytes of a request's line and headers; also of chunk framing between two parts of a body, and of trailers.
_MAX_HEADER_BYTES = 32 * 2**10
# Requests of one connection that wait for the response to an earlier one.
_MAX_PIPELINED = 16
# Seconds from the first byte of a request to the end of its headers, and from a connection to its first byte.
_HEADER_TIMEOUT_S = 10.0
# Seconds in which the rest of a body may come that was refused before its end.
_DISCARD_TIMEOUT_S = 30.0
# Seconds in which the client may read the last response on a connection that is being closed.
_LINGER_S = 10.0
_KEEP_ALIVE_S = 75

# Called with the scope, ``receive`` and ``send`` of ASGI.
Application = Callable[[Any, Any, Any], Awaitable[None]]

# It would log a line for each malformed request; clients without a key could fill the log.
logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)


class _TooManyRequestsError(Exception):
    """A client sent too many requests without waiting for a response. httptools stops where it is raised."""


class _Protocol(IgnoresUpgrades):
    """uvicorn's protocol with bounds on what a client sends, holds and leaves unread, and an end of the work for it.

    At any time, a call is in progress on a connection, or a timer is running that closes it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app = _cancelled_with(self, self.app)
        # With a limit, uvicorn refuses the calls of every connection while there are too many.
        self._max_connections, self.limit_concurrency = self.limit_concurrency or 0, None
        self.running: asyncio.Task[Any] | None = None
        self._in_headers = True
        # Of the headers that are incomplete, or since the last byte of the body.
        self._framing_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > 2 * self._max_connections:
            transport.abort()
            return
        if len(self.connections) > self._max_connections:
            self.app = service_unavailable
        self._start_timer(_HEADER_TIMEOUT_S, self._end)

    def data_received(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        super().data_received(data)
        # Checked afterwards: what came may have completed the headers, as it mostly does.
        if self.transport.is_closing() or not self._framing_bytes:
            return
        if self._framing_bytes > _MAX_HEADER_BYTES:
            self._end()
        elif self._in_headers and self._timer is None:
            self._start_timer(_HEADER_TIMEOUT_S, self._end)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers, which nothing uses, come after the body.
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._end()
            raise _TooManyRequestsError
        self._in_headers, self._framing_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.body_follows:
            return
        super().on_message_complete()
        self._in_headers, self._framing_bytes = True, 0
        if self.cycle.response_complete:
            self._stop_timer()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_timer(_LINGER_S, self.transport.abort)
        elif self.pipeline:
            # uvicorn reads on, whatever waits.
            self.flow.pause_reading()
        elif self.cycle.response_complete and self.cycle.more_body:
            self._unset_keepalive_if_required()
            self._start_timer(_DISCARD_TIMEOUT_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self.running:
            self.running.cancel()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)
        self._end()

    def timeout_keep_alive_handler(self) -> None:
        self._end()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._end()

    def _start_timer(self, seconds: float, then: Callable[[], object]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        """Closes the connection; a client that does not read what was sent to it is not waited for."""
        if not self.transport.is_closing():
            self.transport.close()
        self._start_timer(_LINGER_S, self.transport.abort)


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
            max_connections: Number of connections; calls of further ones are answered 503, and beyond twice as many
                they are closed at once.
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
            limit_concurrency=max_connections,
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

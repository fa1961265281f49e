"""Answers scrapes over HTTP, in a thread with an event loop of its own; what its clients can occupy is bounded.

It listens beside the main port, in the same process. So a connection that sends nothing, sends slowly or does not read
must not hold a thread, and all of them together must not hold the file descriptors that calls need.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from polyhead_server.addresses import split_address
from polyhead_server.errors import StartupError
from polyhead_server.out_of_memory import exit_if_out_of_memory

# Connections at once. A further one closes the oldest: a scrape takes milliseconds, so an old one is no scrape.
MAX_CONNECTIONS = 32
# Seconds from the start of a connection to the last byte of its answer.
CONNECTION_TIMEOUT_S = 5.0
_MAX_REQUEST_BYTES = 8192
# Connections that wait in the kernel, where they occupy no descriptor of this process.
_BACKLOG = 16
_PATHS = {"/", "/metrics"}


def listen_for_scrapes(address: str, registry: CollectorRegistry) -> None:
    """Serves ``http://HOST:PORT/metrics`` from a thread of its own.

    Raises:
        StartupError: The address is invalid or in use.
    """
    host, port = split_address(address)
    # By default each counter and histogram gets another series with its creation time, which nobody needs.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        listener = _bind(host, port)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from error
    server = ScrapeServer(registry)
    threading.Thread(target=lambda: asyncio.run(server.run(listener)), name="metrics", daemon=True).start()


def _bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the first address of a host that can be used."""
    problem = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        listener = socket.socket(family, kind, protocol)
        try:
            # A restarted server does not wait for connections of its predecessor to time out.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            problem = error
        else:
            return listener
    raise problem


class ScrapeServer:
    """An HTTP/1.1 server with one page, one request per connection and a bound for everything."""

    def __init__(
        self,
        registry: CollectorRegistry,
        timeout_s: float = CONNECTION_TIMEOUT_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Prepares the server.

        Args:
            registry: The metrics.
            timeout_s: Seconds from the start of a connection to the last byte of its answer.
            max_connections: Connections at once.
        """
        self._registry = registry
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        # The oldest first.
        self._connections: dict[asyncio.StreamWriter, None] = {}

    async def run(self, listener: socket.socket) -> None:
        """Answers until it is cancelled."""
        server = await asyncio.start_server(self._handle, sock=listener, limit=_MAX_REQUEST_BYTES, backlog=_BACKLOG)
        async with server:
            await server.serve_forever()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection and closes it, whatever its client does."""
        if len(self._connections) >= self._max_connections:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.transport.abort()
        self._connections[writer] = None
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(self._response(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The client's fault, and of no interest to an operator.
            pass
        except Exception as error:
            exit_if_out_of_memory(error)
            raise
        finally:
            self._connections.pop(writer, None)
            writer.transport.abort()

    def _response(self, request: bytes) -> bytes:
        line, _, rest = request.partition(b"\r\n")
        method, _, target = line.decode("latin-1").partition(" ")
        if method not in {"GET", "HEAD"}:
            return _encode("405 Method Not Allowed", b"", ("Allow", "GET, HEAD"))
        if target.partition(" ")[0].partition("?")[0] not in _PATHS:
            return _encode("404 Not Found", b"the metrics are at /metrics\n")
        headers = _headers(rest)
        encode: Callable[[CollectorRegistry], bytes]
        encode, content_type = choose_encoder(headers.get("accept", ""))
        body, more = encode(self._registry), [("Content-Type", content_type)]
        if "gzip" in headers.get("accept-encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            more.append(("Content-Encoding", "gzip"))
        return _encode("200 OK", body, *more, with_body=method == "GET")


def _headers(lines: bytes) -> dict[str, str]:
    headers = {}
    for line in lines.decode("latin-1").split("\r\n"):
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip().lower()] = value.strip()
    return headers


def _encode(status: str, body: bytes, *headers: tuple[str, str], with_body: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + (body if with_body else b"")

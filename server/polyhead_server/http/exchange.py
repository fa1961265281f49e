"""One HTTP request and its response.

On a connection of uvicorn's, a whole body that came with the headers is taken at once, and a whole response is written
at once: by the steps of ASGI both cost the event loop more than the call itself, and the client gets two packets
instead of one. Any other ASGI server is spoken to in those steps.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import fcntl
import termios
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

# A larger body is not copied behind the headers.
_MAX_COPIED_BYTES = 64 * 2**10
# A large body is written in slices of this size, each when the client has read most of the one before.
_SLICE_BYTES = 256 * 2**10
# Seconds within which a client must read some more of a response.
_UNREAD_TIMEOUT_S = 30.0
_WITHOUT_BODY = {204, 304}


class ClientDisconnectError(Exception):
    """The client has closed the connection before it sent the whole body."""


@dataclasses.dataclass(slots=True, eq=False)
class Response:
    """A whole response.

    Attributes:
        body: The body.
        status: HTTP status.
        headers: Headers by their names in lower case, except for the length.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    async def send(self, exchange: Exchange) -> None:
        """Writes the response."""
        await exchange.respond(self)


def exchange_of(scope: Mapping[str, Any], receive: Any, send: Any) -> Exchange:
    """Returns the exchange for the three arguments with which a server calls an ASGI application."""
    # uvicorn passes methods of its object for one request and response.
    on_uvicorn = isinstance(getattr(send, "__self__", None), RequestResponseCycle)
    return UvicornExchange(scope, receive, send) if on_uvicorn else Exchange(scope, receive, send)


class Exchange:
    """A request and its response, on any ASGI server.

    Attributes:
        method: HTTP method.
        path: Decoded path.
        headers: Headers by their names in lower case; of one that is repeated the first.
        path_params: Values of the placeholders of the endpoint's path.
    """

    __slots__ = ("_receive", "_scope", "_send", "headers", "method", "path", "path_params")

    def __init__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Wraps the three arguments with which a server calls an ASGI application."""
        self._scope, self._receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.path_params: dict[str, str] = {}

    @property
    def peer(self) -> str:
        """Address of the client."""
        return ":".join(map(str, self._scope.get("client") or ("unix",)))

    @property
    def query(self) -> dict[str, str]:
        """Parameters of the query."""
        return dict(parse_qsl(self._scope["query_string"].decode("latin-1"), keep_blank_values=True))

    def all_values(self, name: bytes) -> list[str]:
        """Returns the values of a header that may be repeated."""
        return [value.decode("latin-1") for other, value in self._scope["headers"] if other == name]

    def arrived_body(self) -> bytes | None:
        """Returns the body if all of it has arrived; None if it must be awaited. Nothing may have been read before."""
        return None

    async def parts(self) -> AsyncIterator[bytes]:
        """Yields the body as it comes.

        Raises:
            ClientDisconnectError: The client has gone.
        """
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnectError
            if message["body"]:
                yield message["body"]
            more = message["more_body"]

    async def respond(self, response: Response) -> None:
        """Writes a whole response."""
        headers = self._encoded(response.headers)
        if response.status not in _WITHOUT_BODY:
            headers.append((b"content-length", str(len(response.body)).encode()))
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self.send_part(b"" if self.method == "HEAD" else response.body, more=False)

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        """Sends the headers of a response whose body comes in parts."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._encoded(headers)})

    async def send_part(self, part: bytes, *, more: bool) -> None:
        """Sends a part of the body."""
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    @staticmethod
    def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


class UvicornExchange(Exchange):
    """A request and its response on a connection of uvicorn's."""

    __slots__ = ()

    def arrived_body(self) -> bytes | None:
        """Returns the body if all of it has arrived; None if it must be awaited. Nothing may have been read before."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    async def respond(self, response: Response) -> None:
        """Writes a whole response, and lets uvicorn go on with the connection as after its own.

        The call lasts, and what is kept for it counts, until the client has read most of a large response.
        """
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await self._until_read(cycle)
        if cycle.disconnected:
            return
        body = b"" if self.method == "HEAD" else response.body
        head = self._head(response, keep_alive=cycle.keep_alive)
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        if len(body) > _MAX_COPIED_BYTES:
            parts = [memoryview(body)[begin : begin + _SLICE_BYTES] for begin in range(0, len(body), _SLICE_BYTES)]
            cycle.transport.writelines((head, parts[0]))
            # TLS takes whatever is written at once for sent.
            for part in parts[1:]:
                if cycle.flow.write_paused:
                    await self._until_read(cycle)
                if cycle.disconnected:
                    return
                cycle.transport.write(part)
        else:
            cycle.transport.write(head + body)
        if cycle.flow.write_paused:
            await self._until_read(cycle)
        # Only now, as uvicorn begins the next call of the connection when this one is complete.
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    @staticmethod
    async def _until_read(cycle: Any) -> None:
        left = _unread_bytes(cycle.transport)
        while cycle.flow.write_paused:
            try:
                async with asyncio.timeout(_UNREAD_TIMEOUT_S):
                    await cycle.flow.drain()
            except TimeoutError:
                before, left = left, _unread_bytes(cycle.transport)
                if left >= before:
                    cycle.transport.abort()
                    return

    @property
    def _cycle(self) -> Any:
        return self._send.__self__

    @staticmethod
    def _head(response: Response, *, keep_alive: bool) -> bytes:
        headers = "".join([f"{name}: {value}\r\n" for name, value in response.headers.items()])
        if response.status not in _WITHOUT_BODY:
            headers = f"content-length: {len(response.body)}\r\n{headers}"
        if not keep_alive:
            headers += "connection: close\r\n"
        return STATUS_LINE[response.status] + headers.encode("latin-1") + b"\r\n"


def _unread_bytes(transport: Any) -> int:
    """Returns the bytes of a connection that wait here or in the operating system, whose queue takes megabytes."""
    size: int = transport.get_write_buffer_size()
    queued = array.array("i", [0])
    # Not every system tells the length of its queue, and a closed socket has none.
    with contextlib.suppress(OSError, ValueError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    return size + queued[0]

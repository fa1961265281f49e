"""Requests that ask for another protocol are answered as if they had not asked.

Java's HTTP client asks for HTTP/2 with each request in plain text (``upgrade: h2c``), and curl does with ``--http2``; a
server may ignore that. httptools however ends such a message after its headers, and uvicorn drops the body::

    headers of the request -> parser -> on_headers_complete, HttpParserUpgrade
    the rest of the bytes  -> a new parser, which receives only how the body is framed -> on_body, on_message_complete
"""

from __future__ import annotations

import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FRAMING = (b"content-length", b"transfer-encoding")


class IgnoresUpgrades(HttpToolsProtocol):
    """uvicorn's protocol, which also reads the body of a request that asks for an upgrade."""

    _received = b""

    def data_received(self, data: bytes) -> None:
        """Keeps the data for the case that the parser stops within it."""
        self._received = data
        super().data_received(data)

    @property
    def body_follows(self) -> bool:
        """Whether the parser reports the end of a message although its body is still to come."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _unsupported_upgrade_warning(self) -> None:
        """Continues with the body; uvicorn calls this while it handles ``HttpParserUpgrade``."""
        stopped = sys.exc_info()[1]
        if not isinstance(stopped, httptools.HttpParserUpgrade) or not self.body_follows:
            return
        rest = self._received[stopped.args[0] :]
        framing = b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING)
        body = _Body(self)
        self.parser = httptools.HttpRequestParser(body)
        # Without framing, a request has no body.
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % (framing or b"content-length: 0\r\n"))
        body.in_head = False
        if rest:
            self.data_received(rest)


class _Body:
    """Passes on what a parser finds, except for the head of the first message, which is known already."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self.in_head = True
        self._protocol: Any = protocol
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self.in_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.in_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.in_head:
            self._protocol.on_headers_complete()

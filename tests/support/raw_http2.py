"""HTTP/2 by hand: gRPC calls with headers that no client library sends."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_TIMEOUT_S = 20.0

Header = tuple[bytes, bytes]


class RawConnection:
    """One connection; each call is a unary call without a message."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), _TIMEOUT_S)
        self._received = b""
        self._next_stream = 1
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def call(self, path: str, headers: Iterable[Header] = ()) -> None:
        """Makes a call and waits until the server has ended it."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        pairs = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *headers,
        ]
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, b"\0" * 5)
        )
        while not self._ends(stream):
            pass

    def _ends(self, stream: int) -> bool:
        """Reads one frame; returns whether it ends the stream."""
        header = self._read(9)
        length, kind, flags = int.from_bytes(header[:3], "big"), header[3], header[4]
        payload = self._read(length)
        if kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        if kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        if kind == _GOAWAY:
            raise ConnectionError(f"the server closes the connection: {payload!r}")
        ended = kind == _RST_STREAM or (kind in {_DATA, _HEADERS} and flags & _END_STREAM)
        return bool(ended) and int.from_bytes(header[5:], "big") == stream

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._received += data
        data, self._received = self._received[:size], self._received[size:]
        return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    """A string literal of HPACK, without Huffman coding, shorter than 127 bytes."""
    assert len(value) < 127
    return bytes([len(value)]) + value

"""The TCP sockets of this process's clients, which gRPC neither shows nor closes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_DESCRIPTORS = Path("/proc/self/fd")
# ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` in Linux's ``struct tcp_info``.
_TCP_BYTES = struct.Struct("120xQQ")
_TCP_FAMILIES = {socket.AF_INET, socket.AF_INET6}
_MAPPED_PREFIX = "::ffff:"


class Transferred(NamedTuple):
    """Bytes of one connection since it was opened."""

    sent: int
    received: int


def transferred() -> dict[str, Transferred]:
    """Returns the bytes of every TCP connection of this process, by peer as in ``normalized``."""
    found: dict[str, Transferred] = {}
    for peer, connection in _connections():
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES.size)
        if len(info) == _TCP_BYTES.size:
            found[peer] = Transferred(*_TCP_BYTES.unpack(info))
    return found


def close(peer: str) -> None:
    """Closes the connection of a peer as in ``normalized``; gRPC ends its calls."""
    for other, connection in _connections():
        if other == peer:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def normalized(peer: str) -> str:
    """Converts ``ServicerContext.peer()`` to ADDRESS:PORT; peers of other kinds, such as Unix sockets, are unchanged.

    >>> normalized("ipv6:%5B::1%5D:50051")
    '::1:50051'
    """
    scheme, _, address = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    return unquote(address).replace("[", "").replace("]", "").removeprefix(_MAPPED_PREFIX)


def _connections() -> Iterator[tuple[str, socket.socket]]:
    """Yields each connected TCP socket of this process with its peer, as a duplicate that ends with the iteration."""
    for entry in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - numbers, not paths
        # Another thread may close a descriptor at any time; its number then means another file, or none.
        with contextlib.suppress(OSError):
            if (_DESCRIPTORS / entry).is_socket():
                with _duplicate(int(entry)) as connection:
                    if connection.family in _TCP_FAMILIES and connection.type == socket.SOCK_STREAM:
                        address = connection.getpeername()
                        yield f"{address[0].removeprefix(_MAPPED_PREFIX)}:{address[1]}", connection


def _duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise

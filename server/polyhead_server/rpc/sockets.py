"""The TCP sockets of this process's clients, which gRPC neither shows nor closes."""

from __future__ import annotations

import contextlib
import errno
import functools
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
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}


class Transferred(NamedTuple):
    """Bytes of one connection since it was opened."""

    sent: int
    received: int


def transferred(port: int) -> dict[str, Transferred]:
    """Returns the bytes of every TCP connection to a port of this process, by peer as in ``normalized``.

    Raises:
        OSError: The system does not show the connections, or too many files are open to look at them.
    """
    found: dict[str, Transferred] = {}
    for peer, connection in _connections(port):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES.size)
        if len(info) == _TCP_BYTES.size:
            found[peer] = Transferred(*_TCP_BYTES.unpack(info))
    return found


def close(peer: str, port: int | None = None) -> None:
    """Closes the connection of a peer as in ``normalized``; gRPC ends its calls.

    Args:
        peer: The peer.
        port: Port of this process that it is connected to; None for any.

    Raises:
        OSError: The system does not show the connections, or too many files are open to look at them.
    """
    for other, connection in _connections(port):
        if other == peer:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


# Each call of a connection has the same peer.
@functools.lru_cache(maxsize=4096)
def normalized(peer: str) -> str:
    """Converts ``ServicerContext.peer()`` to ADDRESS:PORT; peers of other kinds, such as Unix sockets, are unchanged.

    >>> normalized("ipv6:%5B::1%5D:50051")
    '::1:50051'
    """
    scheme, _, address = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    host, _, port = unquote(address).rpartition(":")
    # The kernel's address of a link-local peer is without the zone.
    return f"{host.strip('[]').partition('%')[0].removeprefix(_MAPPED_PREFIX)}:{port}"


def _connections(port: int | None) -> Iterator[tuple[str, socket.socket]]:
    """Yields each TCP connection to a port, or to any, with its peer, as a duplicate that ends with the iteration."""
    for entry in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - numbers, not paths
        try:
            if not (_DESCRIPTORS / entry).is_socket():
                continue
            with _duplicate(int(entry)) as connection:
                if connection.family in _TCP_FAMILIES and connection.type == socket.SOCK_STREAM:
                    address = connection.getpeername()
                    if port in {None, connection.getsockname()[1]}:
                        yield f"{address[0].removeprefix(_MAPPED_PREFIX)}:{address[1]}", connection
        except OSError as error:
            # Another thread may close a descriptor at any time; its number then means another file, or none. But the
            # connections found must not be taken for all of them when others could not be looked at.
            if error.errno in _NO_DESCRIPTOR:
                raise


def _duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise

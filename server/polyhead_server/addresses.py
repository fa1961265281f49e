"""Where a server listens: HOST:PORT or unix:PATH, and that nobody else does. Nothing here knows gRPC.

gRPC alone would bind beside another server in silence: a name such as ``localhost`` to that of its addresses that is
free, a Unix socket by removing that of the other.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import StartupError
from .settings import split_address

_UNIX = "unix:"
# What a socket's address has room for, on Linux.
_MOST_PATH_BYTES = 107
# A name whose addresses are free on a port that the kernel chose for the first of them: tried so often.
_TRIES = 20
# A name such as localhost may mean an address that this machine has not; gRPC takes those that it has.
_MISSING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound


def unix_path(address: str) -> Path | None:
    """The path of a ``unix:PATH`` address; None for any other.

    Raises:
        StartupError: The path is empty, or longer than the system takes.
    """
    if not address.startswith(_UNIX):
        return None
    name = address.removeprefix(_UNIX)
    # unix:///path is the same as unix:/path.
    path = Path("/" + name.lstrip("/") if name.startswith("/") else name)
    if not name.strip("/"):
        raise StartupError(f"{address!r} names no file; it must be such as unix:/run/polyhead.sock")
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise StartupError(f"{address}: the path is longer than the {_MOST_PATH_BYTES} bytes that the system takes")
    return path


def require_local(address: str) -> None:
    """Refuses an address of the admin service that others can reach; the empty one, for none, is fine.

    Raises:
        StartupError: Names the flag.
    """
    if not address or unix_path(address):
        return
    hosts = [where[0].partition("%")[0] for _, where in _resolve(address)]
    if not all(ipaddress.ip_address(host).is_loopback for host in hosts):
        raise StartupError(
            f"--admin-listen {address} can be reached from other machines, and whoever reaches it may drain "
            "the server; take an address on loopback, or unix:PATH"
        )


@contextlib.contextmanager
def alone(address: str) -> Iterator[str]:
    """Makes sure that nobody listens on an address, for one that will listen there alone; yields it for gRPC.

    A Unix socket that nobody answers on is removed; the one that is bound inside the context is when it ends.

    Raises:
        StartupError: Somebody listens there, or the address is not ours.
    """
    path = unix_path(address)
    if path is None:
        for family, where in _resolve(address):
            with _refused_as(address), _socket(family) as probe:
                _bind_alone(probe, where)
        yield address
        return
    _make_room(path, address)
    try:
        yield f"{_UNIX}{path}"
    finally:
        if _is_socket(path) and not _answers(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Files and Unix sockets that are made meanwhile are their owner's alone (0600)."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def reserve(address: str) -> Iterator[str]:
    """Keeps HOST:PORT for sockets that share ports, for as long as the context lasts; yields it, with port 0 resolved.

    Raises:
        StartupError: Somebody listens there, or the address is not ours.
    """
    host, _, port = address.rpartition(":")
    for tries_left in reversed(range(_TRIES if port == "0" else 1)):
        with contextlib.ExitStack() as sockets:
            try:
                chosen = _reserve_all(address, sockets)
            except StartupError:
                if not tries_left:
                    raise
                continue
            yield f"{host}:{chosen}"
            return


def _reserve_all(address: str, sockets: contextlib.ExitStack) -> int:
    """Reserves all that the name of an address means, on one port, which is returned."""
    port, found = split_address(address)[1], 0
    for family, where in _resolve(address):
        with _refused_as(address) as missing:
            shared = sockets.enter_context(_socket(family))
            # A socket that does not share its port is refused where anybody is, also one that would share it.
            with _socket(family) as probe:
                port = _bind_alone(probe, (where[0], port, *where[2:]))
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # For connections of an earlier server that linger. Only while it binds: it never listens, so afterwards
            # it would let in whoever binds like this.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared.bind((where[0], port, *where[2:]))
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            found += 1
    if not found:
        raise StartupError(f"cannot listen on {address}: {missing[0]}")
    return port


def _resolve(address: str) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
    """Family and socket address of each that a name means; both of IPv4 and IPv6 for a wildcard, as gRPC has it."""
    host, port = split_address(address)
    if host in _WILDCARDS and socket.has_dualstack_ipv6():
        return [(socket.AF_INET6, ("::", port, 0, 0))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {host} is not known: {error}") from error
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))  # type: ignore[misc]


def _socket(family: int) -> socket.socket:
    made = socket.socket(family)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made


def _bind_alone(probe: socket.socket, where: tuple[str | int, ...]) -> int:
    """Binds, without listening, where nobody may listen; returns the port."""
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(where)
    return int(probe.getsockname()[1])


@contextlib.contextmanager
def _refused_as(address: str) -> Iterator[list[OSError]]:
    """Refuses an address that is taken; one that this machine has not, such as IPv6's, is only noted."""
    missing: list[OSError] = []
    try:
        yield missing
    except OSError as error:
        if error.errno not in _MISSING:
            raise StartupError(f"cannot listen on {address}; is another server running there? {error}") from error
        missing.append(error)


def _make_room(path: Path, address: str) -> None:
    """Removes a socket that nobody answers on; refuses anything else that is in the way."""
    with _refused_as(address):
        if not path.exists() and not path.is_symlink():
            return
        if not _is_socket(path):
            raise StartupError(f"cannot listen on {address}: there is a file that is no socket; it is left alone")
        if _answers(path):
            raise StartupError(f"cannot listen on {address}; another server is running there")
        path.unlink()


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _answers(path: Path) -> bool:
    """Whether somebody listens on a Unix socket; one with a full backlog does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
    return True

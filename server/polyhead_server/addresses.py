"""Listening addresses: parsing HOST:PORT and unix:PATH, and checking that no other server listens there.

gRPC alone would silently bind next to another server: a name such as ``localhost`` on whichever of its addresses is
free, a Unix socket by removing the other server's socket file. Nothing here knows gRPC.
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

_UNIX = "unix:"
# Maximum length of a Unix socket's path on Linux (sun_path, without the final zero byte).
_MAX_PATH_BYTES = 107
# Attempts to find a port that is free on every address of a name, when the kernel chooses it on the first address.
_MAX_PORT_ATTEMPTS = 20
# Connections that wait to be accepted.
_BACKLOG = 512
# A name such as localhost may resolve to an address that this machine does not have; gRPC binds the others.
_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - recognised, not bound

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def split_address(address: str) -> tuple[str, int]:
    """Splits ``HOST:PORT``; removes the brackets of an IPv6 host.

    Raises:
        StartupError: It is not a valid HOST:PORT.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise StartupError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def unix_path(address: str) -> Path | None:
    """Returns the path of a ``unix:PATH`` address; None for any other address.

    Raises:
        StartupError: The path is empty or too long.
    """
    if not address.startswith(_UNIX):
        return None
    name = address.removeprefix(_UNIX)
    # unix:///path means the same as unix:/path.
    path = Path("/" + name.lstrip("/") if name.startswith("/") else name)
    if not name.strip("/"):
        raise StartupError(f"{address!r} names no file; a valid address is unix:/run/polyhead.sock")
    if _is_too_long(path):
        raise StartupError(f"{address}: the path is longer than the limit of {_MAX_PATH_BYTES} bytes")
    return path


def require_short_path(path: Path) -> None:
    """Checks the path of a Unix socket in the folder for temporary files.

    Raises:
        StartupError: It is too long for a socket.
    """
    if _is_too_long(path):
        raise StartupError(f"the path of the socket {path} is too long; set TMPDIR to a shorter one")


def is_local(address: str) -> bool:
    """Returns whether only this machine can reach an address: loopback, or a Unix socket. Resolves no names."""
    if address.startswith(_UNIX):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name may resolve to any address.
        return host == "localhost"


def require_local(address: str) -> None:
    """Checks the address of the admin service, which may be empty for none; resolves names.

    Raises:
        StartupError: Other machines can reach it.
    """
    if not address or unix_path(address):
        return
    hosts = [where[0].partition("%")[0] for _, where in _resolve(address)]
    if not all(ipaddress.ip_address(host).is_loopback for host in hosts):
        raise StartupError(
            f"--admin-listen {address} can be reached from other machines, and any of them could drain the server; "
            "use an address on loopback, or unix:PATH"
        )


@contextlib.contextmanager
def exclusive(address: str) -> Iterator[str]:
    """Checks that nothing else listens on an address that one process is about to listen on; yields it for gRPC.

    Removes a Unix socket on which nothing listens, before and after.

    Raises:
        StartupError: Another server listens there, or the address is not one of this machine.
    """
    path = unix_path(address)
    if path is None:
        # With port 0 the kernel chooses a free port.
        if split_address(address)[1]:
            _bind_all(address)
        yield address
        return
    _remove_stale_socket(path, address)
    try:
        yield f"{_UNIX}{path}"
    finally:
        if _is_socket(path) and not _has_listener(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Gives files and Unix sockets created in this context mode 0600."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def listening_sockets(address: str, *, shares_port: bool) -> list[socket.socket]:
    """Returns sockets that listen on every address that a name stands for.

    Args:
        address: HOST:PORT or unix:PATH.
        shares_port: Whether other processes listen on the same port.

    Raises:
        StartupError: The address is taken or does not exist.
    """
    path = unix_path(address)
    if path is not None:
        with private_files():
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(os.fspath(path))
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                raise StartupError(f"cannot listen on {address}: {error}") from error
        return [listener]
    port, sockets, missing = split_address(address)[1], [], None
    for family, (host, _, *scope) in _resolve(address):
        try:
            listener = _bind(family, (host, port, *scope), share_port=shares_port)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                raise StartupError(f"cannot listen on {address}; is another server running there? {error}") from error
            missing = error
            continue
        port = listener.getsockname()[1]
        sockets.append(listener)
    if not sockets:
        raise StartupError(f"cannot listen on {address}: {missing}")
    return sockets


@contextlib.contextmanager
def reserve(address: str) -> Iterator[str]:
    """Reserves HOST:PORT for sockets with SO_REUSEPORT while the context is open; yields it with port 0 resolved.

    Raises:
        StartupError: Another server listens there, or the address is not one of this machine.
    """
    host, _, port = address.rpartition(":")
    for attempts_left in reversed(range(_MAX_PORT_ATTEMPTS if port == "0" else 1)):
        with contextlib.ExitStack() as sockets:
            try:
                chosen = _bind_all(address, sockets)
            except StartupError:
                if not attempts_left:
                    raise
                continue
            yield f"{host}:{chosen}"
            return


def _bind_all(address: str, reserved: contextlib.ExitStack | None = None) -> int:
    """Checks that every address of a name is free on one port; also reserves each in ``reserved``. Returns the port."""
    port, free, missing = split_address(address)[1], False, None
    for family, (host, _, *scope) in _resolve(address):
        try:
            # Without SO_REUSEPORT this fails next to any other listener, even one that would share its port.
            with _bind(family, (host, port, *scope)) as probe:
                port = probe.getsockname()[1]
            if reserved:
                reserved.enter_context(_bind(family, (host, port, *scope), share_port=True))
            free = True
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                raise StartupError(f"cannot listen on {address}; is another server running there? {error}") from error
            missing = error
    if not free:
        raise StartupError(f"cannot listen on {address}: {missing}")
    return port


def _bind(family: int, where: tuple[str | int, ...], *, share_port: bool = False) -> socket.socket:
    """Returns a socket that is bound and does not listen."""
    bound = socket.socket(family)
    try:
        if family == socket.AF_INET6:
            # As gRPC does it: [::] stands for the IPv4 addresses too.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Ignores connections of an earlier server that are in TIME_WAIT.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(where)
        if share_port:
            # Only needed for bind. Left on, it would admit any socket with the same option, since this one never
            # listens.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        bound.close()
        raise
    return bound


def _resolve(address: str) -> list[tuple[int, _SocketAddress]]:
    """Returns family and socket address of everything that an address stands for."""
    host, port = split_address(address)
    if host in _WILDCARDS and socket.has_dualstack_ipv6():
        # gRPC binds either wildcard for both IPv4 and IPv6.
        return [(socket.AF_INET6, ("::", port, 0, 0))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {host} is not known: {error}") from error
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))  # type: ignore[misc]


def _is_too_long(path: Path) -> bool:
    return len(os.fsencode(path)) > _MAX_PATH_BYTES


def _remove_stale_socket(path: Path, address: str) -> None:
    """Removes a Unix socket on which nothing listens; refuses any other file."""
    try:
        if not path.exists() and not path.is_symlink():
            return
        if not _is_socket(path):
            raise StartupError(f"cannot listen on {address}: the file there is not a socket; it is left unchanged")
        if _has_listener(path):
            raise StartupError(f"cannot listen on {address}; another server is running there")
        path.unlink()
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from error


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _has_listener(path: Path) -> bool:
    """Returns whether a process listens on a Unix socket, even with a full backlog."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
    return True

"""Targets: the addresses that gRPC resolves, checked before a channel is opened.

gRPC reports an invalid target only after several attempts to connect, or takes it for the name of a host.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from polyhead_client.errors import InvalidRequestError

# Port of polyhead-serve without --listen, for suggestions.
DEFAULT_PORT = 50051
# Schemes whose addresses are opaque here.
_SOCKET_SCHEMES = ("unix", "unix-abstract", "vsock")
_DISCOVERY_SCHEMES = ("xds", "google-c2p")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCHEME = re.compile(rf"(dns|ipv4|ipv6|{'|'.join(_SOCKET_SCHEMES + _DISCOVERY_SCHEMES)}):(.*)", re.DOTALL)
_MAX_PORT = 65535


@dataclass(frozen=True)
class Target:
    """A valid target.

    Attributes:
        text: The target as gRPC takes it.
        addresses: Host, without brackets, and port of each address; empty if they are not TCP addresses.
        socket_path: Path of a Unix socket; None for every other target.
        local: Whether traffic to the target stays on this machine.
    """

    text: str
    addresses: tuple[tuple[str, int], ...] = ()
    socket_path: str | None = None
    local: bool = False

    def __str__(self) -> str:
        return self.text


def parse(target: str) -> Target:
    """Checks a target.

    Args:
        target: ``HOST:PORT``, or ``dns:``, ``ipv4:``, ``ipv6:``, ``unix:`` or another scheme of gRPC.

    Raises:
        InvalidRequestError: gRPC could not connect to it; the message says what to write instead.
    """
    if not isinstance(target, str):
        raise _invalid(f"expected a str such as '127.0.0.1:{DEFAULT_PORT}', not {type(target).__name__}")
    if not target.strip():
        raise _invalid(f"empty; expected HOST:PORT, such as '127.0.0.1:{DEFAULT_PORT}'")
    if any(character.isspace() or not character.isprintable() for character in target):
        visible = "".join(character for character in target if character.isprintable() and not character.isspace())
        raise _invalid(f"{target!r} contains white space or control characters; write {visible!r}")
    if match := _SCHEME.fullmatch(target):
        return _with_scheme(target, *match.groups())
    if match := _URL.fullmatch(target):
        raise _invalid(_url_problem(target, *match.groups()))
    host, port = _split(target, target)
    return Target(target, ((host, port),), local=_is_loopback(host))


def _with_scheme(target: str, scheme: str, rest: str) -> Target:
    if scheme in _DISCOVERY_SCHEMES:
        return Target(target)
    if scheme in _SOCKET_SCHEMES:
        path = rest.removeprefix("//")
        if not path:
            raise _invalid(f"{target!r} has no path; write {scheme}:PATH")
        return Target(target, socket_path=path if scheme == "unix" else None, local=scheme != "vsock")
    if scheme == "dns":
        # dns://SERVER/NAME resolves NAME with a name server of the user's choice, whose answer is not trusted here.
        authority, _, name = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
        host, port = _split(target, name, prefix=target[: len(target) - len(name)])
        return Target(target, ((host, port),), local=not authority and _is_loopback(host))
    addresses = tuple(_split(target, address, prefix=f"{scheme}:") for address in rest.removeprefix("///").split(","))
    for host, _ in addresses:
        version = _ip_version(host.partition("%")[0])
        if scheme != f"ipv{version}":
            raise _invalid(f"{target!r}: {host!r} is not an {scheme.replace('ip', 'IP')} address; for a name use dns:")
    return Target(target, addresses, local=all(_is_loopback(host) for host, _ in addresses))


def _split(target: str, address: str, prefix: str = "") -> tuple[str, int]:
    """Splits ``HOST:PORT``."""
    if "," in address:
        raise _invalid(f"{target!r} has several addresses; write ipv4:ADDRESS:PORT,ADDRESS:PORT")
    if _ip_version(address) and ":" in address:
        bracketed = f"{prefix}[{address}]:{DEFAULT_PORT}"
        raise _invalid(f"{target!r} has no port, or its IPv6 address no brackets; write {bracketed!r}")
    host, colon, port = address.rpartition(":")
    if not colon or (address.startswith("[") and address.endswith("]")):
        raise _invalid(f"{target!r} has no port; write '{prefix}{address}:{DEFAULT_PORT}', or the port of the server")
    if not host:
        raise _invalid(f"{target!r} has no host; write '{prefix}127.0.0.1:{port}' for a server on this machine")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and not re.fullmatch("[0-9A-Fa-f:.]+", host):
        raise _invalid(f"{target!r} has an unknown scheme; write {prefix + address.partition(':')[2]!r}")
    elif ":" in host:
        raise _invalid(f"{target!r}: an IPv6 address requires brackets; write '{prefix}[{host}]:{port}'")
    number, slash, _ = port.partition("/")
    if slash and number.isdecimal():
        raise _invalid(f"{target!r} has a path; write '{prefix}{address.partition('/')[0]}'")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= _MAX_PORT):
        raise _invalid(f"{target!r}: the port {port!r} is not a number from 1 to {_MAX_PORT}")
    return host, int(port)


def _url_problem(target: str, scheme: str, rest: str) -> str:
    address = rest.partition("/")[0].rpartition("@")[2]
    secure = scheme.lower() in {"https", "grpcs"}
    if ":" not in address:
        address = f"{address or '127.0.0.1'}:{443 if secure else DEFAULT_PORT}"
    advice = " and use TLS: tls=Tls(), or --tls" if secure else ""
    return f"{target!r} is a URL; a gRPC target has no {scheme}://, write {address!r}{advice}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ip_version(address: str) -> int | None:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return None


def _invalid(problem: str) -> InvalidRequestError:
    return InvalidRequestError("INVALID_ARGUMENT", f"target: {problem}", "INVALID_TARGET")

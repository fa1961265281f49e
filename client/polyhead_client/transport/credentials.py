"""How a client proves who it is, and makes sure of who the server is."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from polyhead_client.errors import InvalidRequestError

_SCHEMES = ("ipv4:", "ipv6:", "dns:")


@dataclass(frozen=True)
class Tls:
    """A connection with TLS.

    Attributes:
        ca_file: PEM file with the certificates to trust; None for those that gRPC comes with.
        certificate_file: PEM file with the client's own certificate chain, for a server that asks for one (mTLS).
        key_file: PEM file with that certificate's private key.
        server_name: The name to expect in the server's certificate; None for that in the target.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise InvalidRequestError("INVALID_ARGUMENT", "tls: certificate_file and key_file go together; give both")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants.

        Raises:
            InvalidRequestError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            _content("ca_file", self.ca_file),
            _content("key_file", self.key_file),
            _content("certificate_file", self.certificate_file),
        )


def authorization(
    api_key: str | None, target: str, tls: Tls | None, allow_plaintext_key: bool
) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a key with every call; none without a key.

    Raises:
        InvalidRequestError: The key would cross a network in the clear, or is no key.
    """
    if api_key is None:
        return ()
    # The key itself stands in no message.
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        raise InvalidRequestError("INVALID_ARGUMENT", "api_key: is empty, or not printable ASCII without line breaks")
    if tls is None and not allow_plaintext_key and not is_local(target):
        problem = f"api_key: {target} is no loopback address and the key would cross the network in the clear"
        raise InvalidRequestError("INVALID_ARGUMENT", f"{problem}; use tls, or allow_plaintext_key=True")
    return (("authorization", f"Bearer {api_key}"),)


def is_local(target: str) -> bool:
    """Whether what is sent to ``target`` stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    # A name server in the authority of dns://SERVER/NAME says where NAME is: that is not ours to trust.
    address = address.removeprefix("///")
    host = address.rpartition(":")[0] if address.count(":") == 1 or address.startswith("[") else address
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _content(name: str, file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InvalidRequestError("INVALID_ARGUMENT", f"tls: {name}: cannot read {file}: {error.strerror}") from error

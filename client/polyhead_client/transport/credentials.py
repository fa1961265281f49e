"""TLS and API keys: how a client authenticates itself and verifies the server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from polyhead_client.errors import InvalidRequestError

_SCHEMES = ("ipv4:", "ipv6:", "dns:")


@dataclass(frozen=True)
class Tls:
    """TLS settings of a connection.

    Attributes:
        ca_file: PEM file with the trusted certificates; None for the roots that gRPC ships.
        certificate_file: PEM file with the client's own certificate chain, for a server that requires one (mTLS).
        key_file: PEM file with the private key of ``certificate_file``.
        server_name: Expected name in the server's certificate; None for the host name in the target.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            problem = "tls: certificate_file and key_file belong together; set both"
            raise InvalidRequestError("INVALID_ARGUMENT", problem)

    def credentials(self) -> grpc.ChannelCredentials:
        """Builds the gRPC channel credentials.

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
    """Builds the metadata that carries the API key with every call; empty without a key.

    Raises:
        InvalidRequestError: The key would cross a network unencrypted, or is malformed.
    """
    if api_key is None:
        return ()
    # No error message contains the key itself.
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        problem = "api_key: must be non-empty printable ASCII without line breaks"
        raise InvalidRequestError("INVALID_ARGUMENT", problem)
    if tls is None and not allow_plaintext_key and not is_local(target):
        problem = f"api_key: {target} is not a loopback address, and the key would cross the network unencrypted"
        raise InvalidRequestError("INVALID_ARGUMENT", f"{problem}; use tls, or allow_plaintext_key=True")
    return (("authorization", f"Bearer {api_key}"),)


def is_local(target: str) -> bool:
    """Whether traffic to ``target`` stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    # dns://SERVER/NAME resolves NAME with a name server of the user's choice, whose answer is not trusted here.
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

"""TLS: the server's certificate and key, checked before they are used, and read again when their files change.

::

    files -> Watched -> checked by a handshake in memory -> gRPC, which asks at every new connection
"""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
from grpc import aio

from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from .file_watcher import ReloadingFile, read_bytes

logger = logging.getLogger(__name__)


# How a public key begins in a certificate, of kinds that OpenSSL takes in our check, and gRPC's own clients do not.
_RARE_KEYS = {bytes.fromhex("300506032b6570032100"): "Ed25519", bytes.fromhex("06052b8104002303818600"): "P-521"}


class CheckedCertificate(NamedTuple):
    """A certificate that was checked.

    Attributes:
        configuration: What gRPC takes.
        expiry_s: Unix time at which the certificate expires.
    """

    configuration: grpc.ServerCertificateConfiguration
    expiry_s: float


class Certificates:
    """The certificate of a server, and the authority that its clients' certificates come from if it wants any."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Reads and checks the files.

        Args:
            cert: The server's certificate and those between it and its authority, PEM.
            key: Its private key, PEM, not encrypted.
            client_ca: Certificates of the authorities that clients' certificates must come from, PEM; None for no
                certificates of clients.

        Raises:
            StartupError: A file cannot be read, or a client could not trust what is in it.
        """
        self._wants_clients = client_ca is not None
        self._observe: Callable[[float], None] = lambda _: None
        paths = [cert, key] if client_ca is None else [cert, key, client_ca]
        self._pair = ReloadingFile(paths, lambda: _read(cert, key, client_ca))
        if key.stat().st_mode & stat.S_IROTH:
            logger.warning("everybody on this machine may read the private key %s; chmod 600 takes that away", key)

    @classmethod
    def from_settings(cls, settings: Settings) -> Certificates | None:
        """Those that the settings name; None when the server is to speak plain text.

        Raises:
            StartupError: A file is no good.
        """
        if not settings.tls_cert:
            return None
        client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        return cls(Path(settings.tls_cert), Path(settings.tls_key), client_ca)

    def observe(self, expiry_s: Callable[[float], None]) -> None:
        """Tells the certificate's expiry, in Unix time, now and whenever another certificate comes."""
        self._observe = expiry_s
        expiry_s(self._pair.value().expiry_s)

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for one port, which present the certificate as it is at each new connection."""
        presented = self._pair.value()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal presented
            pair = self._pair.value()
            # None tells gRPC to go on with what it has.
            if pair is presented:
                return None
            presented = pair
            self._observe(pair.expiry_s)
            return pair.configuration

        first = presented.configuration
        return grpc.dynamic_ssl_server_credentials(first, renewed, self._wants_clients)  # type: ignore[arg-type]


def add_port(server: aio.Server, address: str, certificates: Certificates | None) -> int:
    """Adds a port with TLS, or without where there are no certificates; returns its number."""
    if certificates:
        return server.add_secure_port(address, certificates.credentials())
    return server.add_insecure_port(address)


def _read(cert: Path, key: Path, client_ca: Path | None) -> CheckedCertificate:
    chain, secret = read_bytes(cert, "the certificate"), read_bytes(key, "the private key")
    authorities = None if client_ca is None else read_bytes(client_ca, "the authority of clients")
    expiry_s = _expiry_s(cert, key)
    if client_ca is not None:
        _trusting(client_ca)
    # The checks read the files by themselves.
    if read_bytes(cert, "the certificate") != chain or read_bytes(key, "the private key") != secret:
        raise StartupError(f"{cert} or {key} is being written")
    return CheckedCertificate(grpc.ssl_server_certificate_configuration([(secret, chain)], authorities), expiry_s)


def _expiry_s(cert: Path, key: Path) -> float:
    """When the certificate expires, after a handshake with a client that trusts this certificate and no other.

    The handshake is what a client will do, and finds what a client would: another key, a certificate that is expired,
    not valid yet, too weak, or not for servers.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password=lambda: _encrypted(key))
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"{cert} and {key} are no certificate with its private key: {_reason(error)}") from error
    client = _trusting(cert)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    for side in (ours, server.wrap_bio(to_server, to_client, server_side=True), ours):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise StartupError(f"clients cannot trust the certificate {cert}: {_reason(error)}") from error
    _warn_of_rare_keys(cert, ours.getpeercert(binary_form=True) or b"")
    return ssl.cert_time_to_seconds(str((ours.getpeercert() or {})["notAfter"]))


def _warn_of_rare_keys(cert: Path, encoded: bytes) -> None:
    for beginning, kind in _RARE_KEYS.items():
        if beginning in encoded:
            logger.warning("%s has a key of the kind %s, which most gRPC clients refuse; take P-256 or RSA", cert, kind)


def _trusting(authorities: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"{authorities} has no certificate that can be read: {_reason(error)}") from error
    return context


def _encrypted(key: Path) -> str:
    """Stands in for the terminal, where OpenSSL would ask for the key's password."""
    raise StartupError(
        f"the private key {key} is encrypted; write it without a password: openssl pkey -in ... -out ..."
    )


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)

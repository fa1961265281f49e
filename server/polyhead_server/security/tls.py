"""TLS: the server's certificate and key, checked before they are used, and read again when their files change.

::

    files -> ReloadingFile -> checked by a handshake in memory -> gRPC and HTTP, which fetch them for new connections
"""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
from grpc import aio

from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

from .file_watcher import ReloadingFile, read_bytes

logger = logging.getLogger(__name__)


# First bytes of the public key in a certificate, for key types that OpenSSL accepts in the check below and gRPC's own
# clients reject. ``ssl`` does not report the key type, and ``cryptography`` would be one more compiled dependency.
_UNSUPPORTED_KEYS = {bytes.fromhex("300506032b6570032100"): "Ed25519", bytes.fromhex("06052b8104002303818600"): "P-521"}


class CheckedCertificate(NamedTuple):
    """A certificate that has passed the checks.

    Attributes:
        configuration: The certificate in the form that gRPC takes.
        expiry_s: Unix time at which the certificate expires.
    """

    configuration: grpc.ServerCertificateConfiguration
    expiry_s: float


class Certificates:
    """The server's certificate and, for mutual TLS, the authorities that sign its clients' certificates."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Reads and checks the files.

        Args:
            cert: The server's certificate and the intermediate certificates up to its authority, PEM.
            key: Its private key, PEM, not encrypted.
            client_ca: Certificates of the authorities that sign client certificates, PEM; None to accept clients
                without a certificate.

        Raises:
            StartupError: A file cannot be read, or a client could not trust the certificate.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._require_client_certificate = client_ca is not None
        self._on_expiry: Callable[[float], None] = lambda _: None
        paths = [cert, key] if client_ca is None else [cert, key, client_ca]
        self._certificate = ReloadingFile(paths, lambda: _read(cert, key, client_ca))
        if key.stat().st_mode & stat.S_IROTH:
            logger.warning("every user of this machine may read the private key %s; run chmod 600 on it", key)

    @classmethod
    def from_settings(cls, settings: Settings) -> Certificates | None:
        """Returns the certificates that the settings name; None for a server without TLS.

        Raises:
            StartupError: A file is invalid.
        """
        if not settings.tls_cert:
            return None
        client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        return cls(Path(settings.tls_cert), Path(settings.tls_key), client_ca)

    def observe(self, on_expiry: Callable[[float], None]) -> None:
        """Calls ``on_expiry`` with the expiry of the certificate, in Unix time, now and when a renewed one is in force.

        That is from the first connection on, of gRPC or HTTP, after its files are read.
        """
        self._on_expiry = on_expiry
        on_expiry(self._certificate.value().expiry_s)

    def refresh(self) -> None:
        """Reads the files now if they have changed, instead of within ``POLL_INTERVAL_S``."""
        self._certificate.refresh()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for one port; each new connection gets the last valid certificate."""
        presented = self._certificate.value()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal presented
            current = self._certificate.value()
            # None tells gRPC to keep its configuration.
            if current is presented:
                return None
            presented = current
            self._on_expiry(current.expiry_s)
            return current.configuration

        return grpc.dynamic_ssl_server_credentials(
            presented.configuration,
            renewed,  # type: ignore[arg-type]
            self._require_client_certificate,
        )

    def http_context(self) -> ssl.SSLContext:
        """Returns a context for an HTTPS listener, which wraps each new connection as the current files demand."""
        presented: CheckedCertificate | None = None
        context: ssl.SSLContext

        def current() -> ssl.SSLContext:
            nonlocal presented, context
            found = self._certificate.value()
            if found is not presented:
                try:
                    context = self._new_http_context()
                except (OSError, ssl.SSLError):
                    # The files have changed again since they were checked, and will be read again.
                    if presented is None:
                        raise
                    return context
                presented = found
                self._on_expiry(found.expiry_s)
            return context

        current()
        return _RenewedContext(current)

    def _new_http_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._cert, self._key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return context


class _RenewedContext(ssl.SSLContext):
    """Hands every connection over to the context that is current when it comes.

    A context cannot forget an authority, and resumes sessions without verifying the client again. OpenSSL takes the
    authorities from the context that a connection began with, whatever the callback for the server's name sets.
    """

    _current: Callable[[], ssl.SSLContext]

    def __new__(cls, current: Callable[[], ssl.SSLContext]) -> Self:
        """Creates the context.

        Args:
            current: Returns the current context.
        """
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context._current = current
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Wraps a connection, as event loops do."""
        return self._current().wrap_bio(*arguments, **options)


def add_port(server: aio.Server, address: str, certificates: Certificates | None) -> int:
    """Adds a port to a server, with TLS if there are certificates; returns the port number."""
    if certificates:
        return server.add_secure_port(address, certificates.credentials())
    return server.add_insecure_port(address)


def _read(cert: Path, key: Path, client_ca: Path | None) -> CheckedCertificate:
    chain, private_key = read_bytes(cert, "the certificate"), read_bytes(key, "the private key")
    authorities = None if client_ca is None else read_bytes(client_ca, "the client authority")
    expiry_s = _expiry_s(cert, key)
    if client_ca is not None:
        _client_context(client_ca)
    # The checks read the files a second time, so both readings must agree.
    if read_bytes(cert, "the certificate") != chain or read_bytes(key, "the private key") != private_key:
        raise StartupError(f"{cert} or {key} is being written")
    return CheckedCertificate(grpc.ssl_server_certificate_configuration([(private_key, chain)], authorities), expiry_s)


def _expiry_s(cert: Path, key: Path) -> float:
    """Returns the expiry of the certificate, after a handshake with a client that trusts only this certificate.

    The handshake fails for the reasons for which a client's would: the key belongs to another certificate, or the
    certificate is expired, not valid yet, too weak, or not for servers.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password=lambda: _reject_encrypted(key))
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"{cert} and {key} are not a certificate and its private key: {_reason(error)}") from error
    client = _client_context(cert)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client_side, server_side, client_side):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise StartupError(f"clients cannot trust the certificate {cert}: {_reason(error)}") from error
    _warn_of_unsupported_key(cert, client_side.getpeercert(binary_form=True) or b"")
    return ssl.cert_time_to_seconds(str((client_side.getpeercert() or {})["notAfter"]))


def _warn_of_unsupported_key(cert: Path, encoded: bytes) -> None:
    for prefix, kind in _UNSUPPORTED_KEYS.items():
        if prefix in encoded:
            logger.warning("%s has a key of type %s, which most gRPC clients reject; use P-256 or RSA", cert, kind)


def _client_context(authorities: Path) -> ssl.SSLContext:
    """Returns a client's TLS context that trusts the certificates in a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"{authorities} contains no valid certificate: {_reason(error)}") from error
    return context


def _reject_encrypted(key: Path) -> str:
    """Raises instead of letting OpenSSL prompt for the password of the key on the terminal."""
    raise StartupError(
        f"the private key {key} is encrypted; write it without a password: openssl pkey -in ... -out ..."
    )


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)

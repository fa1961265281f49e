"""TLS and API keys: how a client authenticates itself and verifies the server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from polyhead_client.errors import InvalidRequestError

from .target import Target

# Metadata key that names the model of a call.
_MODEL_KEY = "x-polyhead-model"


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
            InvalidRequestError: A file cannot be read, or is not a certificate or key.
        """
        self.context()
        return grpc.ssl_channel_credentials(
            _content("ca_file", self.ca_file),
            _content("key_file", self.key_file),
            _content("certificate_file", self.certificate_file),
        )

    def context(self) -> ssl.SSLContext:
        """Builds the equivalent settings for the standard library, which names the file that it cannot use.

        Raises:
            InvalidRequestError: A file cannot be read, or is not a certificate or key.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC: an intermediate certificate may be trusted
        if (roots := _content("ca_file", self.ca_file)) is not None:
            try:
                context.load_verify_locations(cadata=roots.decode())
            except (ssl.SSLError, ValueError) as error:
                raise _tls_error(f"ca_file: {self.ca_file} contains no certificate in PEM format") from error
        _content("certificate_file", self.certificate_file)
        _content("key_file", self.key_file)
        if self.certificate_file is not None and self.key_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
            except (ssl.SSLError, ValueError) as error:
                problem = f"{self.certificate_file} and {self.key_file} are not a certificate and its key in PEM format"
                if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                    problem = f"{self.key_file} is not the key of {self.certificate_file}"
                elif isinstance(error, _EncryptedKeyError):
                    problem = f"{self.key_file} is encrypted; remove its passphrase"
                raise _tls_error(f"certificate_file, key_file: {problem}") from error
        return context


class _EncryptedKeyError(ValueError):
    """A private key has a passphrase, which gRPC cannot use."""


def _no_password() -> str:
    raise _EncryptedKeyError


def authorization(
    api_key: str | None, target: Target, tls: Tls | None, allow_plaintext_key: bool
) -> tuple[tuple[str, str], ...]:
    """Builds the metadata that carries the API key with every call; empty without a key.

    Raises:
        InvalidRequestError: The key would cross a network unencrypted, or is malformed.
    """
    if api_key is None:
        return ()
    # No error message contains the key itself.
    if not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and api_key.strip()):
        problem = "api_key: must be a non-empty str of printable ASCII without line breaks"
        raise InvalidRequestError("INVALID_ARGUMENT", problem)
    if tls is None and not allow_plaintext_key and not target.local:
        problem = f"api_key: {target} is not a loopback address, and the key would cross the network unencrypted"
        raise InvalidRequestError("INVALID_ARGUMENT", f"{problem}; use tls, or allow_plaintext_key=True")
    return (("authorization", f"Bearer {api_key}"),)


def model_metadata(model: str | None) -> tuple[tuple[str, str], ...]:
    """Builds the metadata that names the model of every call; empty for the server's first model.

    Raises:
        InvalidRequestError: The name is malformed.
    """
    if model is None:
        return ()
    if not (isinstance(model, str) and model.isascii() and model.isprintable() and model.strip()):
        problem = "model: must be a non-empty str of printable ASCII without line breaks"
        raise InvalidRequestError("INVALID_ARGUMENT", problem)
    return ((_MODEL_KEY, model),)


def _content(name: str, file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise _tls_error(f"{name}: cannot read {file}: {error.strerror}") from error


def _tls_error(problem: str) -> InvalidRequestError:
    return InvalidRequestError("INVALID_ARGUMENT", f"tls: {problem}")

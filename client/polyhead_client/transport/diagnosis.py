"""Diagnosis of failed connections: the cause and the fix, where gRPC reports only the last address that it tried.

A call that failed for good is followed by one connection to each address of the target, by the standard library. It
sends no credentials but the client certificate, and no API key.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from typing import Any, NamedTuple

import grpc

from polyhead_client.errors import PolyheadError

from . import channel
from .credentials import Tls
from .target import Target

# Limits of one diagnosis, so that a failed call is not delayed for long.
_TIMEOUT_S, _TOTAL_TIMEOUT_S, _MAX_ADDRESSES = 1.0, 2.0, 8
# Part of gRPC's message for a name that it cannot resolve; the standard library could wait for long.
_NOT_RESOLVED = "errors resolving"
# A diagnosis is shared by the calls that fail within this time.
_VALID_S = 1.0
# gRPC calls through a proxy that its environment names; a direct connection says nothing about those.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

# HTTP/2's connection preface and an empty SETTINGS frame, and the position and value of a frame's type.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER_BYTES, _TYPE_POSITION, _SETTINGS = 9, 3, 4
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")

# grpc.health.v1.Health/Check: the request for the inference service, and the response that says SERVING.
_HEALTH_REQUEST = bytes([0x0A, len(channel.SERVICE)]) + channel.SERVICE.encode()
_SERVING = b"\x08\x01"

# Verification errors of OpenSSL.
_EXPIRED, _NOT_YET_VALID, _NAME_MISMATCHES = 10, 9, (62, 64)

_DEFAULT_FLAG = "--listen"
_RESTART_HINT = "start the server with --tls-cert, or connect without TLS"


class _Problem(NamedTuple):
    """A cause of failure, as the reason and message of an error."""

    reason: str
    message: str


class Diagnosis:
    """Explains the failed calls of one client. Any thread may use it; it blocks."""

    def __init__(
        self, target: Target, tls: Tls | None, service: str = channel.SERVICE, flag: str = _DEFAULT_FLAG
    ) -> None:
        """Connects to nothing yet.

        Args:
            target: The target of the calls.
            tls: TLS settings; None for plain TCP.
            service: The gRPC service that is called.
            flag: Flag of polyhead-serve with the address of that service.
        """
        self._target = target
        self._tls = tls
        self._service = service
        self._flag = flag
        self._lock = threading.Lock()
        self._problem: _Problem | None = None
        self._valid_until_s = 0.0

    def explain(self, error: PolyheadError) -> PolyheadError:
        """Returns an error of the same class and code with the cause and the fix, or ``error`` if they are unknown."""
        if error.reason:
            return error
        if error.code == "UNIMPLEMENTED":
            problem: _Problem | None = _Problem(
                "WRONG_SERVICE",
                f"the server at {self._target} has no {self._service}: use the address of polyhead-serve {self._flag}",
            )
        elif _NOT_RESOLVED in error.message:
            # Only the last part of gRPC's nested message says more than the name.
            problem = _name_not_resolved(self._target, error.message.rstrip("]").rpartition(": ")[2])
        else:
            problem = self._find()
        if problem is None:
            return error
        return type(error)(error.code, problem.message, problem.reason, error.retry_after_s)

    def _find(self) -> _Problem | None:
        with self._lock:
            if time.monotonic() >= self._valid_until_s:
                self._problem = connection_problem(
                    self._target, self._tls, self._flag, check_health=self._service == channel.SERVICE
                )
                self._valid_until_s = time.monotonic() + _VALID_S
            return self._problem


def connection_problem(
    target: Target, tls: Tls | None, flag: str = _DEFAULT_FLAG, *, check_health: bool
) -> _Problem | None:
    """Connects to the target and returns the first problem; None if there is none, or none is found in time.

    Args:
        target: The target.
        tls: TLS settings; None for plain TCP.
        flag: Flag of polyhead-serve with the address of the service that is called.
        check_health: Also ask the health service whether the inference service is ready.
    """
    if not target.local and any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXY_VARIABLES):
        return None
    # In a thread: nothing limits the time that the resolution of a name takes.
    end_s = time.monotonic() + _TOTAL_TIMEOUT_S
    found: list[tuple[bool, _Problem | None]] = []
    thread = threading.Thread(
        name="polyhead-diagnosis", target=lambda: found.append(_probe_all(target, tls, flag, end_s)), daemon=True
    )
    thread.start()
    thread.join(_TOTAL_TIMEOUT_S)
    reached, problem = found[0] if found else (False, None)
    left_s = end_s - time.monotonic()
    if reached and check_health and left_s > 0:
        return _health_problem(target, tls, min(_TIMEOUT_S, left_s))
    return problem


def _probe_all(target: Target, tls: Tls | None, flag: str, end_s: float) -> tuple[bool, _Problem | None]:
    """Connects to the addresses of the target until ``end_s``; returns whether one has no problem, or the problem."""
    refused: list[str] = []
    reached = False
    for family, address, host in _addresses(target):
        if isinstance(address, _Problem):
            return False, address
        shown = f"unix:{address}" if family == socket.AF_UNIX else _format(address)
        try:
            problem = _probe(family, address, host, shown, tls)
        except TimeoutError:
            problem = _Problem("CONNECTION_TIMEOUT", f"no answer from {shown}; check the address and the firewall")
        except OSError as error:
            reason = error.strerror or str(error)
            refused.append(reason if shown == target.text else f"{shown}: {reason}")
            continue
        if problem is not None:
            return False, problem
        reached = True
        if time.monotonic() > end_s:
            break
    if reached or not refused:
        return reached, None
    server = "polyhead-serve running" if flag == _DEFAULT_FLAG else f"polyhead-serve running with {flag}"
    return False, _Problem("CONNECTION_REFUSED", f"no server at {target} ({'; '.join(refused)}); is {server}?")


def _addresses(target: Target) -> Iterator[tuple[int, object, str]]:
    """Yields family, address and host name of each address of the target, or the problem of resolving one."""
    if target.socket_path is not None:
        yield socket.AF_UNIX, target.socket_path, "localhost"
    for host, port in target.addresses[:_MAX_ADDRESSES]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            yield 0, _name_not_resolved(target, str(getattr(error, "strerror", error))), host
            return
        for family, _, _, _, address in found[:_MAX_ADDRESSES]:
            yield family, address, host


def _name_not_resolved(target: Target, detail: str) -> _Problem:
    host = target.addresses[0][0] if target.addresses else target.text
    message = f"the host name {host!r} cannot be resolved ({detail}); check the name, and the name server"
    return _Problem("NAME_NOT_RESOLVED", message)


def _format(address: object) -> str:
    host, port = address[:2]  # type: ignore[index]  # of AF_INET or AF_INET6
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _probe(family: int, address: object, host: str, shown: str, tls: Tls | None) -> _Problem | None:
    """Connects as gRPC does.

    Raises:
        TimeoutError: The host or the server does not answer.
        OSError: The connection is refused.
    """
    if tls is None:
        with _connect(family, address) as connection:
            return _plaintext_problem(connection, family, address, shown)
    try:
        return _tls_problem(family, address, shown, tls, tls.server_name or host)
    except ssl.SSLError as error:
        return _tls_error_problem(error, family, address, shown, tls)


def _connect(family: int, address: object) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(address)  # type: ignore[arg-type]  # as getaddrinfo returned it
    except BaseException:
        connection.close()
        raise
    return connection


def _exchange(connection: socket.socket) -> bytes:
    """Sends HTTP/2's preface and returns the first bytes of the answer; empty if the peer closes the connection."""
    received = b""
    with suppress(ConnectionError):
        connection.sendall(_PREFACE)
        while len(received) < _FRAME_HEADER_BYTES and (part := connection.recv(64)):
            received += part
    return received


def _plaintext_problem(connection: socket.socket, family: int, address: object, shown: str) -> _Problem | None:
    received = _exchange(connection)
    if received.startswith(_TLS_RECORDS) or (not received and _speaks_tls(family, address)):
        return _Problem(
            "TLS_REQUIRED", f"the server at {shown} requires TLS: pass tls=Tls(ca_file=...), or --tls and --ca"
        )
    return _http2_problem(received, shown)


def _http2_problem(received: bytes, shown: str) -> _Problem | None:
    if len(received) >= _FRAME_HEADER_BYTES and received[_TYPE_POSITION] == _SETTINGS:
        return None
    if received.startswith((b"HTTP/", b"<")):  # some answer HTTP/2's preface with HTML and no status line
        return _Problem(
            "NOT_GRPC",
            f"the server at {shown} speaks HTTP/1, not gRPC: the address is that of polyhead-serve --metrics-listen or "
            "--http-listen, or of another program; use the address of --listen",
        )
    what = "sends something else" if received else "closes the connection"
    return _Problem("NOT_GRPC", f"the server at {shown} does not speak gRPC: it {what}")


def _speaks_tls(family: int, address: object) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only asks whether it is TLS
    try:
        with _connect(family, address) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return error.reason != "WRONG_VERSION_NUMBER" and "ALERT" in str(error.reason)
    except OSError:
        return False


def _tls_problem(family: int, address: object, shown: str, tls: Tls, name: str) -> _Problem | None:
    context = _context(tls)
    with _connect(family, address) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=name) as secured:
                received = _exchange(secured)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _NAME_MISMATCHES:
                return _name_problem(family, address, shown, tls, name)
            raise
        except (ConnectionError, ssl.SSLEOFError):
            return _Problem("TLS_NOT_SUPPORTED", f"the server at {shown} ends the TLS handshake: {_RESTART_HINT}")
    # TLS 1.3 rejects a client certificate after the client's part of the handshake, gRPC's servers without an alert.
    return _http2_problem(received, shown) if received else _client_certificate_problem(shown, tls, "")


def _client_certificate_problem(shown: str, tls: Tls, alert: str) -> _Problem:
    own = f"the certificate {tls.certificate_file}" if tls.certificate_file else "a client without a certificate"
    return _Problem(
        "CLIENT_CERTIFICATE_REJECTED",
        f"the server at {shown} rejects {own}{alert}: pass one that it trusts as tls=Tls(certificate_file=..., "
        "key_file=...), or --cert and --key",
    )


def _context(tls: Tls) -> ssl.SSLContext:
    context = tls.context()
    if tls.ca_file is None:
        file = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
        if file:
            context.load_verify_locations(file)
        else:
            context.load_verify_locations(
                cadata=(resources.files("grpc") / "_cython/_credentials/roots.pem").read_text()
            )
    return context


def _name_problem(family: int, address: object, shown: str, tls: Tls, name: str) -> _Problem:
    context = _context(tls)
    context.check_hostname = False
    with _connect(family, address) as connection, context.wrap_socket(connection) as secured:
        certificate = secured.getpeercert() or {}
    alternatives: Any = certificate.get("subjectAltName", ())  # pairs of kind and name
    subject: Any = certificate.get("subject", ())  # the same, in tuples
    names = [str(value) for _, value in alternatives]
    # gRPC accepts the common name of a certificate without alternative names.
    names = names or [str(value) for pairs in subject for kind, value in pairs if kind == "commonName"]
    example = next((one for one in names if "*" not in one), "NAME")
    return _Problem(
        "CERTIFICATE_NAME_MISMATCH",
        f"the certificate of the server at {shown} is for {', '.join(names) or 'no name'}, not for {name!r}: connect "
        f"to that name, or expect it with tls=Tls(server_name={example!r}), or --server-name {example}",
    )


def _tls_error_problem(error: ssl.SSLError, family: int, address: object, shown: str, tls: Tls) -> _Problem:
    roots = f"ca_file {tls.ca_file}" if tls.ca_file else "the default roots"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
            state = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
            return _Problem(
                "CERTIFICATE_EXPIRED",
                f"a certificate in the chain of the server at {shown} {state}: renew it, or check the clock",
            )
        return _Problem(
            "CERTIFICATE_NOT_TRUSTED",
            f"the certificate of the server at {shown} is not signed by {roots} ({error.verify_message}): pass the "
            "certificate of its authority as tls=Tls(ca_file=...), or --ca",
        )
    reason = error.reason or ""
    if "ALERT" in reason:
        return _client_certificate_problem(shown, tls, f" ({reason.lower().replace('_', ' ')})")
    with _connect(family, address) as connection:
        received = _exchange(connection)
    if (problem := _http2_problem(received, shown)) is not None and received:
        return problem
    return _Problem("TLS_NOT_SUPPORTED", f"the server at {shown} does not use TLS: {_RESTART_HINT}")


def _health_problem(target: Target, tls: Tls | None, timeout_s: float) -> _Problem | None:
    """Asks the health service, as gRPC does before it sends calls."""
    # Without the service config, by which gRPC sends no call to a server that is not serving.
    options = [option for option in channel.options(target, tls) if option[0] != "grpc.service_config"]
    opened = (
        grpc.secure_channel(target.text, tls.credentials(), options)
        if tls
        else grpc.insecure_channel(target.text, options)
    )
    with opened:
        try:
            check: Any = opened.unary_unary("/grpc.health.v1.Health/Check")
            response = check(_HEALTH_REQUEST, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return _Problem(
                    "WRONG_SERVICE",
                    f"the gRPC server at {target} has no {channel.SERVICE}: use the address of polyhead-serve --listen",
                )
            return None
    if response == _SERVING:
        return None
    return _Problem(
        "NOT_SERVING",
        f"the server at {target} reports NOT_SERVING: it is loading its model or draining; retry later, or wait with "
        "wait_for_ready=True",
    )

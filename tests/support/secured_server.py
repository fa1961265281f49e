"""Connections to a server with TLS and API keys, and how calls over them end."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from tests.e2e.conftest import START_S, Server, Start
from tests.support.certificates import Authority, Files

Metadata = tuple[tuple[str, str], ...]
TEXT = item_pb2.Item(item_id="1", text="Where is my refund?")
KEYS = {"reader": '["infer"]', "expired": '["infer"]\nexpires = 2020-01-01T00:00:00Z', "probe": '["info"]'}


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


READER = bearer("reader")


def write_keys(path: Path, names: list[str]) -> Path:
    entries = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nscopes = {KEYS[name]}\n'
        for name in names
    ]
    fresh = path.with_suffix(".fresh")
    fresh.write_text("".join(entries) or "keys = []\n")
    fresh.chmod(0o600)
    return fresh.rename(path)


@dataclass
class Secured:
    """A server with mutual TLS and API keys.

    Attributes:
        server: The process.
        authority: The authority that signed all certificates.
        files: The server's certificate and key.
        client: A client's certificate and key.
        keys: The key file.
    """

    server: Server
    authority: Authority
    files: Files
    client: Files
    keys: Path

    def open(self, client: Files | None = None, authority: Authority | None = None) -> grpc.Channel:
        """Opens a new connection with a client's certificate."""
        return connect(self.server, authority or self.authority, client or self.client)


def connect(server: Server, authority: Authority, client: Files | None) -> grpc.Channel:
    """Opens a new connection; without a client certificate if there is none."""
    pair = (client.key.read_bytes(), client.cert.read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes(), *pair)
    return grpc.secure_channel(server.target, credentials, [("grpc.use_local_subchannel_pool", 1)])


def serve(start: Start, bundle: Path, *flags: str) -> Server:
    """Starts a server and waits until it serves."""
    server = start(bundle, *flags)
    # The log is polled instead of the health service: with TLS, only the test knows how to connect.
    ends = time.monotonic() + START_S
    while "serving" not in server.log.read_text():
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < ends, server.log.read_text()
        time.sleep(0.02)
    return server


def outcome(channel: grpc.Channel, metadata: Metadata = READER) -> str:
    """Makes a call and returns how it ends: its code, and the reason if there is one."""
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
    with channel:
        try:
            response = stub.Analyze(pb2.AnalyzeRequest(items=[TEXT]), metadata=metadata, timeout=START_S)
        except grpc.RpcError as error:
            return described(error)
    (answer,) = response.answers
    return "OK" if answer.HasField("result") else "item error"


def described(error: Any) -> str:
    """Returns the code of an error, and its reason if there is one."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is None:
        return str(error.code().name)
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return f"{error.code().name} {info.reason}"


def presented(server: Server, authority: Authority, client: Files) -> int:
    """Returns the serial number of the certificate that the server presents to a new connection."""
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.load_cert_chain(client.cert, client.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = server.target.rpartition(":")
    with (
        socket.create_connection((host, int(port)), START_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        return int(str((tls.getpeercert() or {})["serialNumber"]), 16)

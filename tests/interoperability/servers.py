"""The two servers that the clients call: one in plain text, one with TLS and API keys."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from polyhead_client import Client, Tls

from bench.harness.servers import BIN, free_port, wait_until_serving
from tests.support.certificates import Authority

from .calls import Server

_KEY, _INFO_KEY = "interoperability-key", "interoperability-info"
_SCOPES = {_KEY: '["infer", "info"]', _INFO_KEY: '["info"]'}


@contextlib.contextmanager
def plain_server(bundle: Path, folder: Path, texts: list[str]) -> Iterator[Server]:
    """Runs a server in plain text without keys.

    Args:
        bundle: What to serve.
        folder: Where the log is written.
        texts: What the clients send.
    """
    with _running(bundle, folder / "plain.log", ()) as (target, address):
        yield _describe(target, f"http://{address}", texts)


@contextlib.contextmanager
def protected_server(bundle: Path, folder: Path, texts: list[str]) -> Iterator[Server]:
    """Runs a server with TLS and two API keys, like ``plain_server``."""
    authority = Authority(folder)
    keys = folder / "keys.toml"
    keys.touch(0o600)
    keys.write_text("".join(map(_key_entry, _SCOPES)))
    flags = (*authority.issue("server").flags, "--api-keys", str(keys))
    with _running(bundle, folder / "protected.log", flags, authority.cert) as (target, address):
        yield _describe(target, f"https://{address}", texts, _KEY, str(authority.cert))


def client_of(server: Server) -> Client:
    """Returns the shipped client of ``polyhead.v1``, connected to a server."""
    return Client(server.grpc, tls=Tls(ca_file=server.ca) if server.ca else None, api_key=server.key)


def _describe(target: str, http: str, texts: list[str], key: str | None = None, ca: str | None = None) -> Server:
    bare = Server(target, http, "", texts, 0, key, _INFO_KEY if key else None, ca)
    with client_of(bare) as client:
        info = client.info()
    name = info.model_id.rpartition("-")[0]
    return Server(target, http, name, texts, info.limits.max_items_per_message, key, bare.info_key, ca)


def _key_entry(key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[[keys]]\nname = "{key}"\nsha256 = "{digest}"\nscopes = {_SCOPES[key]}\n'


@contextlib.contextmanager
def _running(bundle: Path, log: Path, flags: Sequence[str], ca: Path | None = None) -> Iterator[tuple[str, str]]:
    target, address = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--http-listen", address, *flags]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--variant", "int8"], stdout=output, stderr=output)
    try:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes()) if ca else None
        wait_until_serving(process, target, log, credentials=credentials)
        yield target, address
    finally:
        process.terminate()
        process.wait(60)

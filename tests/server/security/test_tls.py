"""Certificates: which are refused before a client connects, and what happens when the files change."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from grpc import aio
from polyhead_server.errors import StartupError
from polyhead_server.security import file_watcher
from polyhead_server.security.tls import Certificates, add_port
from polyhead_server.settings import Settings

from tests.support.certificates import DAY, Authority, Files, Key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def refused(cert: Path, key: Path, client_ca: Path | None = None) -> str:
    """Returns the reason why these files are refused."""
    with pytest.raises(StartupError) as caught:
        Certificates(cert, key, client_ca)
    return str(caught.value)


def expiry_of(certificates: Certificates) -> float:
    seen: list[float] = []
    certificates.refresh()
    certificates.observe(seen.append)
    return seen[-1]


def test_expiry_is_that_of_the_certificate(authority: Authority) -> None:
    files = authority.issue("server", ends=30 * DAY)
    expected = time.time() + 30 * DAY.total_seconds()
    assert expiry_of(Certificates(files.cert, files.key)) == pytest.approx(expected, abs=60)


def test_file_may_contain_intermediate_certificates(authority: Authority) -> None:
    files = authority.issue("server", ends=3 * DAY)
    files.cert.write_bytes(files.cert.read_bytes() + authority.cert.read_bytes())
    expected = time.time() + 3 * DAY.total_seconds()
    assert expiry_of(Certificates(files.cert, files.key)) == pytest.approx(expected, abs=60)


def test_missing_file_is_named(authority: Authority, tmp_path: Path) -> None:
    files, missing = authority.issue("server"), tmp_path / "missing"
    assert f"cannot read the certificate {missing}: No such file" in refused(missing, files.key)
    assert f"cannot read the private key {missing}: No such file" in refused(files.cert, missing)
    assert f"cannot read the client authority {missing}" in refused(files.cert, files.key, missing)


def test_key_of_another_certificate_is_refused(authority: Authority) -> None:
    problem = refused(authority.issue("server").cert, authority.issue("other").key)
    assert re.search(
        r"server\.pem and .*other\.key are not a certificate and its private key: key values mismatch", problem
    )


def test_expired_certificate_is_refused(authority: Authority) -> None:
    files = authority.issue("server", begins=-3 * DAY, ends=-DAY)
    assert refused(files.cert, files.key).endswith("server.pem: certificate has expired")


def test_certificate_that_is_not_valid_yet_is_refused(authority: Authority) -> None:
    files = authority.issue("server", begins=DAY)
    assert refused(files.cert, files.key).endswith("server.pem: certificate is not yet valid")


def test_encrypted_key_is_refused_without_a_password_prompt(authority: Authority) -> None:
    files = authority.issue("server", password=b"secret")
    assert "server.key is encrypted" in refused(files.cert, files.key)


def test_file_without_a_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    files, text = authority.issue("server"), tmp_path / "text"
    text.write_text("not PEM")
    assert "are not a certificate and its private key" in refused(text, files.key)
    assert f"{text} contains no valid certificate" in refused(files.cert, files.key, text)


def test_key_that_every_user_may_read_causes_a_warning(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    files = authority.issue("server")
    Certificates(files.cert, files.key)
    assert not caplog.records
    files.key.chmod(0o644)
    Certificates(files.cert, files.key)
    assert f"may read the private key {files.key}" in caplog.text


@pytest.mark.parametrize(
    ("key", "unsupported"),
    [
        (ec.generate_private_key(ec.SECP256R1()), False),
        (ec.generate_private_key(ec.SECP384R1()), False),
        (rsa.generate_private_key(65537, 2048), False),
        (ec.generate_private_key(ec.SECP521R1()), True),
        (ed25519.Ed25519PrivateKey.generate(), True),
    ],
    ids=["P-256", "P-384", "RSA", "P-521", "Ed25519"],
)
async def test_key_that_grpc_clients_reject_causes_a_warning(
    key: Key, unsupported: bool, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue("server", key=key)
    server = aio.server()
    port = add_port(server, "127.0.0.1:0", Certificates(files.cert, files.key))
    await server.start()
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    async with aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        call: Any = channel.unary_unary("/no.Such/Thing")
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"", timeout=30)
    await server.stop(None)
    assert caught.value.code() is (grpc.StatusCode.UNAVAILABLE if unsupported else grpc.StatusCode.UNIMPLEMENTED)
    assert ("most gRPC clients reject" in caplog.text) == unsupported


def test_renewed_certificate_is_used(authority: Authority) -> None:
    files = authority.issue("server", ends=3 * DAY)
    certificates = Certificates(files.cert, files.key)
    old = expiry_of(certificates)
    files.replace(authority.issue("next", ends=4 * DAY))
    assert expiry_of(certificates) - old == pytest.approx(DAY.total_seconds(), abs=60)


async def greeting(port: int, trusted: Path, own: Files) -> bytes:
    """Returns what an HTTPS listener sends to a client with a certificate; nothing if it rejects the client."""
    context = ssl.create_default_context(cafile=trusted)
    context.load_cert_chain(own.cert, own.key)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            return await reader.read()
        finally:
            writer.close()
    except (ConnectionError, ssl.SSLError):
        return b""


async def test_https_trusts_only_the_client_authorities_of_the_current_file(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    folders = tmp_path / "old", tmp_path / "new"
    for folder in folders:
        folder.mkdir()
    old, new = (Authority(folder) for folder in folders)
    files, client_ca = old.issue("server"), tmp_path / "client_ca.pem"
    clients = old.issue("client"), new.issue("client")
    shutil.copy(old.cert, client_ca)
    certificates = Certificates(files.cert, files.key, client_ca)
    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=certificates.http_context())
    port = server.sockets[0].getsockname()[1]
    assert [await greeting(port, old.cert, client) for client in clients] == [b"hello", b""]
    shutil.copy(new.cert, client_ca)
    certificates.refresh()
    assert [await greeting(port, old.cert, client) for client in clients] == [b"", b"hello"]
    # The server's own certificate is renewed in the same way.
    files.replace(new.issue("server"))
    certificates.refresh()
    assert [await greeting(port, new.cert, client) for client in clients] == [b"", b"hello"]
    # Files that change while they are loaded leave the previous ones in force.
    shutil.copy(old.cert, client_ca)
    certificates.refresh()
    client_ca.unlink()
    assert [await greeting(port, new.cert, client) for client in clients] == [b"", b"hello"]
    shutil.copy(old.cert, client_ca)
    assert [await greeting(port, new.cert, client) for client in clients] == [b"hello", b""]
    server.close()


def replace_certificate_without_key(files: Files, authority: Authority) -> None:
    shutil.copy(authority.issue("next").cert, files.cert)


def replace_with_expired(files: Files, authority: Authority) -> None:
    files.replace(authority.issue("next", begins=-3 * DAY, ends=-DAY))


def overwrite_with_text(files: Files, authority: Authority) -> None:
    files.cert.write_text("nothing")


@pytest.mark.parametrize("damage", [replace_certificate_without_key, replace_with_expired, overwrite_with_text])
def test_invalid_new_certificate_keeps_the_old_one(
    damage: Callable[[Files, Authority], None], authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue("server", ends=3 * DAY)
    certificates = Certificates(files.cert, files.key)
    old = expiry_of(certificates)
    damage(files, authority)
    assert [expiry_of(certificates) for _ in range(3)] == [old] * 3
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.name == file_watcher.__name__
    files.replace(authority.issue("repaired", ends=4 * DAY))
    assert expiry_of(certificates) > old


def test_server_without_a_certificate_has_no_tls(settings: Callable[..., Settings]) -> None:
    assert Certificates.from_settings(settings()) is None

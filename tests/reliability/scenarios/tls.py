"""Unauthorized and malformed TLS clients, and a certificate that is replaced under load."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from polyhead_client import Answer, AsyncClient, PolyheadError, Tls

from bench.harness.servers import free_port
from tests.reliability.processes import Server, open_descriptors, run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic
from tests.support.certificates import DAY, Authority, Files

# Names of the API keys; each key has the scope of the same name.
_INFER, _INFO = "infer", "info"
# The concurrent traffic sends no message of this size, so the metrics of the server show whether one was parsed.
_LARGE_TEXT = "word " * 20_000
_LARGE_BUCKETS = ("65536.0", "262144.0")
# Fluctuation of the descriptors of the server caused by concurrent clients that open new connections.
_DESCRIPTOR_MARGIN = 10
# Maximum time until new connections get a new certificate, which is loaded when a connection arrives.
_MAX_RELOAD_S = 1.0
# Attempts that no server can accept, because the client itself aborts the handshake.
_ABORTED_BY_CLIENT = {"plaintext", "a client that trusts another authority"}


class Attempt(NamedTuple):
    """Credentials of a client, and the expected status of its call; the security guide lists them."""

    tls: Tls | None
    key: str | None
    status: str


@scenario(
    "TLS faults",
    fault="Under load: certificates and keys that are invalid, expired or missing, plaintext, incomplete handshakes "
    "and random bytes; the certificate of the server is replaced",
    expected="Each attempt ends as documented in the security guide, and no message of a refused call is parsed; a new "
    "certificate takes effect at once; authorized clients on existing and on new connections are not affected",
)
async def tls_faults(context: Context) -> Verdict:
    """The control makes the same attempts on a server that requires neither client certificates nor keys."""
    authority = Authority(context.work_dir)
    files, valid_tls = authority.issue("server"), _tls(authority, authority.issue("client"))
    attempts, rounds = _attempts(context, authority, valid_tls), context.scaled(10, 2)
    incomplete = context.scaled(200, 50)
    metrics = free_port()
    auth_flags = (
        *("--tls-client-ca", str(authority.cert)),
        *("--api-keys", str(_write_keys(context.work_dir / "keys.toml"))),
        *("--metrics-listen", f"127.0.0.1:{metrics}"),
    )
    persistent, reconnecting = (Traffic(context.reference_answers, context.texts) for _ in range(2))
    unexpected: list[str] = []
    async with (
        run_server(context.bundle, context.work_dir, *files.flags, *auth_flags, tls=valid_tls) as server,
        AsyncClient(server.target, tls=valid_tls, api_key=_INFER) as client,
        persistent.flowing([client], calls=2),
        reconnecting.flowing([_ReconnectingClient(server.target, valid_tls)], calls=2, items=1, streams=0),
    ):
        await _flow(persistent, reconnecting)
        started = time.monotonic()
        for _ in range(rounds):
            statuses = await _statuses(server, attempts)
            unexpected += [f"{name} {one}" for name, one in statuses.items() if one != attempts[name].status]
        parsed = await asyncio.to_thread(_large_parsed, metrics)
        async with _incomplete_handshakes(server, incomplete):
            await _flow(persistent, reconnecting)
            reload_s = [
                await _replace_certificate(server, files, authority, reconnecting, number) for number in range(rounds)
            ]
        ended = time.monotonic()
        await _flow(persistent, reconnecting)
        authorized = await _status(server, Attempt(valid_tls, _INFER, "OK"))
        counted = await asyncio.to_thread(_large_parsed, metrics)
    async with run_server(context.bundle, context.work_dir, *files.flags, tls=valid_tls) as server:
        open_statuses = await _statuses(server, attempts)
    answered = [name for name, status in open_statuses.items() if status == "OK"]
    count = rounds * len(attempts)
    return Verdict(
        observed=f"{count} attempts of {len(attempts)} kinds: {len(unexpected)} ended "
        f"unexpectedly{': ' if unexpected else ''}{', '.join(sorted(set(unexpected)))}, {parsed} of their messages "
        f"were parsed; {incomplete} concurrent incomplete handshakes; {rounds} new certificates, each in effect "
        f"within {max(reload_s):.2f} s; {persistent.failures()} of {len(persistent.requests):,} items on existing "
        f"connections and {reconnecting.failures()} of {len(reconnecting.requests):,} items on new connections "
        "without a correct answer",
        passed=not (unexpected or parsed or persistent.failures() or reconnecting.failures())
        and persistent.covers(started, ended)
        and reconnecting.covers(started, ended)
        and max(reload_s) < _MAX_RELOAD_S,
        control=f"a server without client authentication answers {len(answered)} of the {len(attempts)} kinds: "
        f"{', '.join(answered)}; {counted} message of an authorized call ({authorized}) is counted as parsed",
        control_failed=set(answered) == set(attempts) - _ABORTED_BY_CLIENT and (authorized, counted) == ("OK", 1),
        figures={
            "attempts": count,
            "unexpected": len(unexpected),
            "parsed": parsed,
            "incomplete_handshakes": incomplete,
            "new_certificates": rounds,
            "reload_max_s": max(reload_s),
            "items": len(persistent.requests),
            "failed_items": persistent.failures(),
            "items_on_new_connections": len(reconnecting.requests),
            "failed_items_on_new_connections": reconnecting.failures(),
        },
    )


def _attempts(context: Context, authority: Authority, valid_tls: Tls) -> Mapping[str, Attempt]:
    (context.work_dir / "other").mkdir()
    other = Authority(context.work_dir / "other")
    expired = authority.issue("expired", begins=-3 * DAY, ends=-DAY)
    unavailable = "UNAVAILABLE"
    return {
        "plaintext": Attempt(None, _INFER, unavailable),
        "a client that trusts another authority": Attempt(_tls(other, None), _INFER, unavailable),
        "no certificate": Attempt(_tls(authority, None), _INFER, unavailable),
        "a certificate of another authority": Attempt(_tls(authority, other.issue("client")), _INFER, unavailable),
        "an expired certificate": Attempt(_tls(authority, expired), _INFER, unavailable),
        "no key": Attempt(valid_tls, None, "UNAUTHENTICATED UNAUTHENTICATED"),
        "an invalid key": Attempt(valid_tls, "invalid", "UNAUTHENTICATED UNAUTHENTICATED"),
        "a key for another method": Attempt(valid_tls, _INFO, "PERMISSION_DENIED PERMISSION_DENIED"),
    }


def _tls(authority: Authority, client: Files | None) -> Tls:
    return Tls(authority.cert, client.cert, client.key) if client else Tls(authority.cert)


def _write_keys(path: Path) -> Path:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in (_INFER, _INFO)}
    entries = [f'[[keys]]\nname = "{name}"\nsha256 = "{one}"\nscopes = ["{name}"]\n' for name, one in hashes.items()]
    path.write_text("".join(entries))
    path.chmod(0o600)
    return path


async def _flow(*traffics: Traffic) -> None:
    await asyncio.gather(*(one.flow_until(60) for one in traffics))


async def _statuses(server: Server, attempts: Mapping[str, Attempt]) -> dict[str, str]:
    return {name: await _status(server, one) for name, one in attempts.items()}


async def _status(server: Server, one: Attempt) -> str:
    """Sends a large message; returns the status code, and the reason of the error if the server gives one."""
    try:
        async with AsyncClient(server.target, tls=one.tls, api_key=one.key, max_attempts=1) as client:
            (answer,) = await client.analyze([_LARGE_TEXT], deadline_s=30)
    except PolyheadError as error:
        # A failed handshake has no reason on the wire; the client finds one out by itself.
        return error.code if error.code == "UNAVAILABLE" else f"{error.code} {error.reason}".strip()
    return answer.error.code if answer.error else "OK"


def _large_parsed(port: int) -> int:
    """Returns the number of large messages that the server has parsed according to its metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text = page.read().decode()
    counts = dict(re.findall(r'^polyhead_request_bytes_bucket{le="(\S+)"} (\S+)$', text, re.MULTILINE))
    low, high = (float(counts[limit]) for limit in _LARGE_BUCKETS)
    return int(high - low)


@contextlib.asynccontextmanager
async def _incomplete_handshakes(server: Server, number: int) -> AsyncIterator[None]:
    """Opens ``number`` connections that stop in the middle of the handshake.

    A quarter as many close in the middle of it, and a quarter as many send random bytes. The open descriptors of the
    server must show that it holds the stopped connections, and that it releases all of them in the end.
    """
    hello, rng = _client_hello(), random.Random(0)
    before = open_descriptors(server.process.pid)
    stalled = [hello[: len(hello) // 2]] * number
    writers = [await _connect(server, data) for data in [*stalled, *(rng.randbytes(500) for _ in range(number // 4))]]
    for _ in range(number // 4):
        # The peer closes while the server answers the handshake.
        (await _connect(server, hello)).close()
    minimum = before + number - _DESCRIPTOR_MARGIN
    try:
        await wait_until(
            lambda: open_descriptors(server.process.pid) >= minimum, "the incomplete handshakes are not counted"
        )
        yield
    finally:
        for writer in writers:
            writer.close()
    maximum = before + _DESCRIPTOR_MARGIN
    await wait_until(
        lambda: open_descriptors(server.process.pid) <= maximum, "the server keeps the incomplete handshakes"
    )


def _client_hello() -> bytes:
    """Returns the first message of a TLS client."""
    outgoing = ssl.MemoryBIO()
    handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


async def _connect(server: Server, data: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    return writer


async def _replace_certificate(
    server: Server, files: Files, authority: Authority, reconnecting: Traffic, number: int
) -> float:
    """Replaces the certificate under load; returns the seconds until a new connection gets the new one."""
    before = await _certificate_serial(server)
    files.replace(authority.issue(f"next-{number}"))
    started = time.monotonic()
    while await _certificate_serial(server) == before:
        if time.monotonic() > started + 30:
            raise RuntimeError("the server does not load the new certificate")
    duration_s = time.monotonic() - started
    await reconnecting.flow_until(10)
    return duration_s


async def _certificate_serial(server: Server) -> str:
    """Returns the serial number of the certificate that a new connection gets."""
    if server.tls is None or server.tls.certificate_file is None:
        raise RuntimeError("the server has no certificate")
    context = ssl.create_default_context(cafile=server.tls.ca_file)
    context.load_cert_chain(server.tls.certificate_file, server.tls.key_file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    serial = str(writer.get_extra_info("peercert")["serialNumber"])
    writer.close()
    return serial


class _ReconnectingClient:
    """A client that opens a new connection for each call."""

    def __init__(self, target: str, tls: Tls) -> None:
        self._target = target
        self._tls = tls

    async def analyze(self, texts: Iterable[tuple[str, str]], *, deadline_s: float | None = None) -> list[Answer]:
        """Sends one call over its own connection."""
        async with AsyncClient(self._target, tls=self._tls, api_key=_INFER) as client:
            return await client.analyze(texts, deadline_s=deadline_s)

    async def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """Sends one stream over its own connection."""
        async with AsyncClient(self._target, tls=self._tls, api_key=_INFER) as client:
            async for answer in client.stream(texts):
                yield answer

"""Peers that may not speak to the server, or do not know how to, and a certificate that changes under load."""

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

from bench.harness.certificates import DAY, Authority, Files
from bench.harness.servers import free_port

from .processes import Server, open_descriptors, run_server, wait_until
from .scenario import Context, Verdict, scenario
from .traffic import Traffic

# Keys, and each one's right.
_INFER, _INFO = "infer", "info"
# The neighbours send nothing of the kind, so that the server's metrics tell whether it was parsed.
_LARGE = "word " * 20_000
_LARGE_IS_BETWEEN = ("65536.0", "262144.0")
# Descriptors of the server for those neighbours who connect anew, more or less.
_COME_AND_GO = 10
# A new certificate is read when a connection comes.
_IN_FORCE_S = 1.0
# What no server can let in: the client itself hangs up.
_NEVER_ANSWERED = {"plain text", "a client that trusts another authority"}


class Try(NamedTuple):
    """What a client comes with, and how its call is to end; docs/security.md has the table."""

    tls: Tls | None
    key: str | None
    ending: str


@scenario(
    "TLS faults",
    fault="certificates and keys that are wrong, expired or missing, plain text, half handshakes, random bytes, and a "
    "server's certificate that is replaced, under load",
    expected="each ends as security.md says, and nothing of a refused call is parsed; the new certificate is in force "
    "at once; clients that may be served, over lasting connections and over new ones, notice nothing",
)
async def tls_faults(context: Context) -> Verdict:
    """The control: the same tries on a server that wants neither certificates nor keys."""
    authority = Authority(context.work_dir)
    files, good = authority.issue("server"), _tls(authority, authority.issue("client"))
    tries, rounds = _tries(context, authority, good), context.scaled(10, 2)
    halves = context.scaled(200, 50)
    metrics = free_port()
    guards = (
        *("--tls-client-ca", str(authority.cert)),
        *("--api-keys", str(_write_keys(context.work_dir / "keys.toml"))),
        *("--metrics-listen", f"127.0.0.1:{metrics}"),
    )
    lasting, fresh = (
        Traffic(context.reference_answers, context.texts),
        Traffic(context.reference_answers, context.texts),
    )
    otherwise: list[str] = []
    async with (
        run_server(context.bundle, context.work_dir, *files.flags, *guards, tls=good) as server,
        AsyncClient(server.target, tls=good, api_key=_INFER) as client,
        lasting.flowing([client], calls=2),
        fresh.flowing([_Newcomer(server.target, good)], calls=2, items=1, streams=0),
    ):
        await _flow(lasting, fresh)
        begun = time.monotonic()
        for _ in range(rounds):
            endings = await _endings(server, tries)
            otherwise += [f"{name} {end}" for name, end in endings.items() if end != tries[name].ending]
        parsed = await asyncio.to_thread(_large_parsed, metrics)
        async with _half_handshakes(server, halves):
            await _flow(lasting, fresh)
            in_force = [await _replace(server, files, authority, fresh, number) for number in range(rounds)]
        ended = time.monotonic()
        await _flow(lasting, fresh)
        served = await _ending(server, Try(good, _INFER, "OK"))
        counted = await asyncio.to_thread(_large_parsed, metrics)
    async with run_server(context.bundle, context.work_dir, *files.flags, tls=good) as server:
        opened = await _endings(server, tries)
    answered = [name for name, ending in opened.items() if ending == "OK"]
    tried = rounds * len(tries)
    return Verdict(
        observed=f"{tried} tries of {len(tries)} kinds: {len(otherwise)} ended otherwise{': ' if otherwise else ''}"
        f"{', '.join(sorted(set(otherwise)))}, {parsed} of their messages were parsed; {halves} half handshakes at "
        f"once; {rounds} new certificates, in force after at most {max(in_force):.2f} s; {lasting.failures()} of "
        f"{len(lasting.requests):,} items beside them and {fresh.failures()} of {len(fresh.requests):,} over a new "
        "connection each not answered rightly",
        passed=not (otherwise or parsed or lasting.failures() or fresh.failures())
        and lasting.covers(begun, ended)
        and fresh.covers(begun, ended)
        and max(in_force) < _IN_FORCE_S,
        control=f"a server that wants neither certificates nor keys answers {len(answered)} of the {len(tries)} kinds: "
        f"{', '.join(answered)}; the message of a call that may be made ({served}) is seen to be parsed: {counted}",
        control_failed=set(answered) == set(tries) - _NEVER_ANSWERED and (served, counted) == ("OK", 1),
        figures={
            "tries": tried,
            "otherwise": len(otherwise),
            "parsed": parsed,
            "half_handshakes": halves,
            "new_certificates": rounds,
            "in_force_most_s": max(in_force),
            "items": len(lasting.requests),
            "failed_items": lasting.failures(),
            "new_connections": len(fresh.requests),
            "bad_new_connections": fresh.failures(),
        },
    )


def _tries(context: Context, authority: Authority, good: Tls) -> Mapping[str, Try]:
    (context.work_dir / "other").mkdir()
    other = Authority(context.work_dir / "other")
    expired = authority.issue("expired", begins=-3 * DAY, ends=-DAY)
    unavailable = "UNAVAILABLE"
    return {
        "plain text": Try(None, _INFER, unavailable),
        "a client that trusts another authority": Try(_tls(other, None), _INFER, unavailable),
        "no certificate": Try(_tls(authority, None), _INFER, unavailable),
        "a certificate of another authority": Try(_tls(authority, other.issue("client")), _INFER, unavailable),
        "an expired certificate": Try(_tls(authority, expired), _INFER, unavailable),
        "no key": Try(good, None, "UNAUTHENTICATED UNAUTHENTICATED"),
        "a wrong key": Try(good, "incorrect", "UNAUTHENTICATED UNAUTHENTICATED"),
        "a key for another method": Try(good, _INFO, "PERMISSION_DENIED PERMISSION_DENIED"),
    }


def _tls(authority: Authority, client: Files | None) -> Tls:
    return Tls(authority.cert, client.cert, client.key) if client else Tls(authority.cert)


def _write_keys(path: Path) -> Path:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in (_INFER, _INFO)}
    entries = [f'[[keys]]\nname = "{name}"\nsha256 = "{one}"\nrights = ["{name}"]\n' for name, one in hashes.items()]
    path.write_text("".join(entries))
    path.chmod(0o600)
    return path


async def _flow(*traffics: Traffic) -> None:
    await asyncio.gather(*(one.flow_until(60) for one in traffics))


async def _endings(server: Server, tries: Mapping[str, Try]) -> dict[str, str]:
    return {name: await _ending(server, one) for name, one in tries.items()}


async def _ending(server: Server, one: Try) -> str:
    """How a call with a large message ends: its code, and the reason if it gives one."""
    try:
        async with AsyncClient(server.target, tls=one.tls, api_key=one.key, max_attempts=1) as client:
            (answer,) = await client.analyze([_LARGE], deadline_s=30)
    except PolyheadError as error:
        return f"{error.code} {error.reason}".strip()
    return answer.error.code if answer.error else "OK"


def _large_parsed(port: int) -> int:
    """How many large messages the server has parsed, as its metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text = page.read().decode()
    counts = dict(re.findall(r'^polyhead_request_bytes_bucket{le="(\S+)"} (\S+)$', text, re.MULTILINE))
    low, high = (float(counts[limit]) for limit in _LARGE_IS_BETWEEN)
    return int(high - low)


@contextlib.asynccontextmanager
async def _half_handshakes(server: Server, number: int) -> AsyncIterator[None]:
    """Connections that stop halfway, and a quarter as many each that hang up halfway and that send random bytes.

    The server is seen to hold the first, and to let go of them all in the end.
    """
    hello, rng = _client_hello(), random.Random(0)
    before = open_descriptors(server.process.pid)
    stay = [hello[: len(hello) // 2]] * number
    writers = [await _said(server, first) for first in [*stay, *(rng.randbytes(500) for _ in range(number // 4))]]
    for _ in range(number // 4):
        # The server's own half of the handshake is on its way to nobody.
        (await _said(server, hello)).close()
    least = before + number - _COME_AND_GO
    try:
        await wait_until(lambda: open_descriptors(server.process.pid) >= least, "the half handshakes are not seen")
        yield
    finally:
        for writer in writers:
            writer.close()
    most = before + _COME_AND_GO
    await wait_until(lambda: open_descriptors(server.process.pid) <= most, "the server keeps the half handshakes")


def _client_hello() -> bytes:
    """What a client says first."""
    said = ssl.MemoryBIO()
    handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return said.read()


async def _said(server: Server, first: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(first)
    return writer


async def _replace(server: Server, files: Files, authority: Authority, fresh: Traffic, number: int) -> float:
    """Puts another certificate in place, under load; returns the seconds until a new connection gets it."""
    before = await _presented(server)
    files.replace(authority.issue(f"next-{number}"))
    begun = time.monotonic()
    while await _presented(server) == before:
        if time.monotonic() > begun + 30:
            raise RuntimeError("the new certificate does not come")
    took = time.monotonic() - begun
    await fresh.flow_until(10)
    return took


async def _presented(server: Server) -> str:
    """The serial number of the certificate that a new connection gets."""
    if server.tls is None or server.tls.certificate_file is None:
        raise RuntimeError("the server has no certificate")
    context = ssl.create_default_context(cafile=server.tls.ca_file)
    context.load_cert_chain(server.tls.certificate_file, server.tls.key_file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    serial = str(writer.get_extra_info("peercert")["serialNumber"])
    writer.close()
    return serial


class _Newcomer:
    """A client that connects anew for each call."""

    def __init__(self, target: str, tls: Tls) -> None:
        self._target = target
        self._tls = tls

    async def analyze(self, texts: Iterable[tuple[str, str]], *, deadline_s: float | None = None) -> list[Answer]:
        """One call over a connection of its own."""
        async with AsyncClient(self._target, tls=self._tls, api_key=_INFER) as client:
            return await client.analyze(texts, deadline_s=deadline_s)

    async def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """One stream over a connection of its own."""
        async with AsyncClient(self._target, tls=self._tls, api_key=_INFER) as client:
            async for answer in client.stream(texts):
                yield answer

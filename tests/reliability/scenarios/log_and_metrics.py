"""What strangers can do to the log and the metrics of a server, and through them to its calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence

from polyhead_client import AsyncClient, PolyheadError
from polyhead_server.security import api_keys

from bench.harness.servers import free_port
from tests.reliability.processes import open_descriptors, run_server, start_server, stop_server
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.unprotected_server import without
from tests.support.raw_http2 import RawConnection

_ANALYZE = "/polyhead.v1.InferenceService/Analyze"
_ODD_HEADERS = [(b"k%d" % number, b"\x80\x1b[31mERROR\n") for number in range(60)]
# Two lines for each of the first calls, and less than a line per second after that.
_MAX_LOG_BYTES = 30_000
_DEADLINE_S = 10.0
_DESCRIPTORS = 200


@scenario(
    "hostile metadata",
    fault="Calls without a valid key, whose metadata contain a key, terminal escapes and bytes that are not UTF-8",
    expected=f"None of it stands in the log, which grows by less than {_MAX_LOG_BYTES:,} bytes; calls with a key are "
    "answered",
)
async def hostile_metadata(context: Context) -> Verdict:
    """The control logs what libraries log."""
    calls = context.scaled(2000, 200)
    leaked, growth, answered = await _send_odd_headers(context, calls)
    control_leaked, control_growth, _ = await _send_odd_headers(context, 20, without("library-lines"))
    return Verdict(
        observed=f"{calls:,} calls: the log grew by {growth:,} bytes; the key stands in it: {_yes(leaked)}; "
        f"{answered} of 1 later call answered",
        passed=not leaked and growth < _MAX_LOG_BYTES and answered == 1,
        control=f"with the lines of libraries, 20 calls: {control_growth:,} bytes; the key stands in them: "
        f"{_yes(control_leaked)}",
        control_failed=control_leaked and control_growth > _MAX_LOG_BYTES,
        figures={"calls": calls, "log_bytes": growth},
    )


async def _send_odd_headers(context: Context, calls: int, wrap: Sequence[str] = ()) -> tuple[bool, int, int]:
    """Returns whether the key stands in the log, how many bytes the log grew by, and how many later calls succeed."""
    folder = context.work_dir / ("control" if wrap else "server")
    folder.mkdir()
    key = api_keys.create(folder / "keys.toml", "shop", ["infer"], None)
    async with run_server(context.bundle, folder, "--api-keys", str(folder / "keys.toml"), wrap=wrap) as server:
        before = server.log.stat().st_size

        def send() -> None:
            with RawConnection(server.target) as connection:
                connection.call(_ANALYZE, [(b"authorization", f"Bearer {key}".encode() + b"\xff")])
                for _ in range(calls):
                    connection.call(_ANALYZE, _ODD_HEADERS)

        await asyncio.to_thread(send)
        async with AsyncClient(server.target, api_key=key) as client:
            answered = sum(one.result is not None for one in await client.analyze(context.texts[:1]))
        growth = server.log.stat().st_size - before
    return key in server.log.read_text(errors="replace"), growth, answered


@scenario(
    "unread log",
    fault="The standard error of the server is a full pipe that nobody reads",
    expected="The server starts, answers, and drains on SIGTERM",
)
async def unread_log(context: Context) -> Verdict:
    """The control writes its log on the event loop."""
    answered, code = await _serve_into_a_full_pipe(context)
    control_answered, _ = await _serve_into_a_full_pipe(context, without("log-thread"))
    return Verdict(
        observed=f"{answered} of {len(context.texts)} texts answered; exit code {code}",
        passed=answered == len(context.texts) and code == 0,
        control=f"with a log that is written on the event loop, {control_answered} texts are answered in "
        f"{_DEADLINE_S:g} s",
        control_failed=not control_answered,
        figures={"texts": len(context.texts), "answered": answered},
    )


async def _serve_into_a_full_pipe(context: Context, wrap: Sequence[str] = ()) -> tuple[int, int | None]:
    """Returns the number of texts answered, and the exit code, None if the server had to be killed."""
    with _full_pipe() as write:
        log = context.work_dir / "server.log"
        server = start_server(context.bundle, log, "--access-log", "info", wrap=wrap, stderr=write)
        answered, code = 0, None
        try:
            with contextlib.suppress(PolyheadError, TimeoutError):
                async with asyncio.timeout(_DEADLINE_S if wrap else None):
                    if not wrap:
                        await server.wait_until_serving()
                    async with AsyncClient(server.target) as client:
                        answers = await client.analyze(context.texts, deadline_s=_DEADLINE_S if wrap else 60)
                answered = sum(one.result is not None for one in answers)
            if answered:
                code = await server.stop()
        finally:
            if server.process.poll() is None:
                server.process.kill()
                await stop_server(server)
        return answered, code


@contextlib.contextmanager
def _full_pipe() -> Iterator[int]:
    """Yields the writing end of a pipe into which not a byte fits."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (65536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * size)
    os.set_blocking(write, True)
    try:
        yield write
    finally:
        os.close(write)
        os.close(read)


@scenario(
    "metrics connections",
    fault=f"More connections to the metrics address than the server may have descriptors ({_DESCRIPTORS}), each in the "
    "middle of a request",
    expected="New connections for calls are accepted, and scrapes are answered",
)
async def metrics_connections(context: Context) -> Verdict:
    """The control neither limits the connections nor their time."""
    answered, scraped, held = await _occupy_metrics(context)
    control_answered, _, control_held = await _occupy_metrics(context, without("metrics-bounds"))
    return Verdict(
        observed=f"{held} descriptors in use; a call over a new connection answered: {_yes(answered)}; a scrape: "
        f"{_yes(scraped)}",
        passed=answered and scraped and held < _DESCRIPTORS,
        control=f"without limits, {control_held} descriptors in use; a call over a new connection answered in "
        f"{_DEADLINE_S:g} s: {_yes(control_answered)}",
        control_failed=not control_answered,
        figures={"descriptors": held, "control_descriptors": control_held},
    )


async def _occupy_metrics(context: Context, wrap: Sequence[str] = ()) -> tuple[bool, bool, int]:
    """Returns whether a call and a scrape were answered, and how many descriptors the server had open."""
    metrics = f"127.0.0.1:{free_port()}"
    limited = ["prlimit", f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}", *wrap]
    log_dir = context.work_dir / ("control" if wrap else "server")
    log_dir.mkdir()
    async with (
        run_server(context.bundle, log_dir, "--metrics-listen", metrics, wrap=limited) as server,
        _half_requests(metrics, _DESCRIPTORS + 50),
    ):
        held = open_descriptors(server.process.pid)
        answered = scraped = False
        with contextlib.suppress(PolyheadError):
            async with AsyncClient(server.target) as client:
                answers = await client.analyze(context.texts[:1], deadline_s=_DEADLINE_S)
            answered = answers[0].result is not None
        if answered:
            scraped = await asyncio.to_thread(_scrape, metrics)
    return answered, scraped, held


@contextlib.asynccontextmanager
async def _half_requests(address: str, number: int) -> AsyncIterator[None]:
    host, _, port = address.partition(":")
    connections = [socket.socket() for _ in range(number)]
    try:
        for connection in connections:
            connection.settimeout(0.05)
            # The backlog of a server that accepts no more fills up.
            with contextlib.suppress(OSError):
                connection.connect((host, int(port)))
                connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            await asyncio.sleep(0)
        yield
    finally:
        for connection in connections:
            connection.close()


def _scrape(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=_DEADLINE_S) as page:
        return b"polyhead_requests_total" in page.read()


def _yes(value: bool) -> str:
    return "yes" if value else "no"

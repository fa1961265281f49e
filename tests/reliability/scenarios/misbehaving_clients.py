"""Clients that grant no flow-control window, stop in the middle of a message, or open many calls at once."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import AsyncClient

from tests.reliability.processes import Server, children, count_connections, rss_mb, run_server, wait_until
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic
from tests.support.http2_client import Http2Client, frame

_SERVICE = "polyhead.v1.InferenceService"
_ANALYZE, _STREAM, _WATCH = f"{_SERVICE}/Analyze", f"{_SERVICE}/StreamAnalyze", "grpc.health.v1.Health/Watch"
_OK, _INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED = 0, 3, 8, 12
# At least this much of about 0.9 MB of answers arrives.
_LARGE_BYTES = 750_000
_NAMES: dict[int | None, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def _failures_of_others(context: Context, server: Server, items: int = 100) -> int:
    """Returns how many items of the shipped client get no correct answer."""
    traffic = Traffic(context.reference_answers, context.texts)
    async with AsyncClient(server.target) as client, traffic.flowing([client]):
        await traffic.flow_until(items)
    return traffic.failures()


def _large_request(text: str = "", items: int = 1024) -> bytes:
    """A request whose answers are far larger than itself: about 1.8 MB."""
    return pb2.AnalyzeRequest(items=[item_pb2.Item(text=text)] * items).SerializeToString()


@scenario(
    "unread health watches",
    fault="Clients without a key that watch the health service, grant no flow-control window and never read",
    expected="Other clients are answered, and the server still drains and exits with code 0",
)
async def unread_health_watches(context: Context) -> Verdict:
    """The control is an inference call that is never read, which the server waits for until the drain timeout."""
    watches = context.scaled(200, 50)

    async def stop_with(method: str, calls: int, message: bytes) -> tuple[int, float, int]:
        flags = ("--drain-timeout-s", "3", "--drain-delay-s", "0")
        async with run_server(context.bundle, context.work_dir, *flags) as server:
            with Http2Client(server.port, window=0) as client:
                for _ in range(calls):
                    client.send(client.open(method), frame(message))
                await asyncio.to_thread(client.receive, 2.0)
                failures = await _failures_of_others(context, server)
                began = time.monotonic()
                return await server.stop(), time.monotonic() - began, failures

    code, seconds, failures = await stop_with(_WATCH, watches, b"")
    control_code, _, _ = await stop_with(_ANALYZE, 1, _large_request())
    return Verdict(
        observed=f"{watches} unread watches: {failures} items of other clients without a correct answer; SIGTERM ended "
        f"the server with code {code}",
        passed=not failures and code == 0,
        control=f"one inference call that is never read: exit code {control_code}",
        control_failed=control_code == 1,
        figures={"watches": watches, "exit_s": seconds, "failed_items": failures},
    )


@scenario(
    "burst of calls",
    fault="Thousands of unary calls at once over one connection, from a stub without retries",
    expected="Every call is answered, or rejected by the server with a delay for the retry; none is cancelled",
)
async def burst_of_calls(context: Context) -> Verdict:
    """The control is a queue that may not hold the burst for long: then the server rejects calls with a delay."""
    calls = context.scaled(8_000, 3_000)
    codes = await _burst(context, calls)
    rejected = await _burst(context, 200, "--max-queue-s", "0.001")
    return Verdict(
        observed=f"{calls:,} calls: {_described(codes)}",
        passed=codes == {"OK": calls},
        control=f"200 calls with --max-queue-s 0.001: {_described(rejected)}",
        control_failed=rejected["OK"] < 200 and set(rejected) <= {"OK", "RESOURCE_EXHAUSTED with a delay"},
        figures={"calls": calls, "answered": codes["OK"]},
    )


async def _burst(context: Context, calls: int, *flags: str) -> Counter[str]:
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=context.texts[0])])
    codes: Counter[str] = Counter()
    async with (
        run_server(context.bundle, context.work_dir, *flags) as server,
        grpc.aio.insecure_channel(server.target, _OWN_CONNECTION) as channel,
    ):
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def one() -> None:
            call = stub.Analyze(request, timeout=120)
            code, metadata = (await call.code()).name, dict(await call.trailing_metadata() or ())
            codes[f"{code} with a delay" if "grpc-retry-pushback-ms" in metadata else code] += 1

        await asyncio.gather(*(one() for _ in range(calls)))
    return codes


def _described(codes: Counter[str]) -> str:
    return ", ".join(f"{number:,} {code}" for code, number in codes.most_common())


def _named(statuses: Iterable[int | None]) -> str:
    """Returns how often each status occurs, by name."""
    return _described(Counter(_NAMES.get(status, "without a status") for status in statuses))


@scenario(
    "incomplete requests",
    fault="Calls of every kind that end without a message, or in the middle of one, and messages that stop arriving",
    expected="Every unary call ends with a status other than OK, and a connection with too many incomplete messages is "
    "closed; memory is bounded and other clients are answered",
)
async def incomplete_requests(context: Context) -> Verdict:
    """The control sends the same requests whole."""
    unary = [_ANALYZE, f"{_SERVICE}/GetModelInfo", "grpc.health.v1.Health/Check", "grpc.health.v1.Health/List", _WATCH]
    message = pb2.AnalyzeRequest(items=[item_pb2.Item(text=context.texts[0])]).SerializeToString()
    cuts = [frame(message)[:length] for length in (0, 3, len(message))]
    flags = ("--max-held-bytes", str(64 * 2**20), "--max-message-bytes", str(4 * 2**20))
    async with run_server(context.bundle, context.work_dir, *flags) as server:
        await _failures_of_others(context, server)
        statuses = await asyncio.to_thread(_statuses, server, [(method, cut) for method in unary for cut in cuts])
        before_mb = rss_mb(server.process.pid)
        closed, peak_mb = await asyncio.to_thread(_hold_incomplete, server, context.scaled(8, 3))
        failures = await _failures_of_others(context, server)
        whole = await asyncio.to_thread(_statuses, server, [(_ANALYZE, frame(message)), (unary[1], frame(b""))])
    return Verdict(
        observed=f"{sum(statuses.values())} incomplete unary calls: {_named(statuses.elements())}; {closed} of "
        f"{context.scaled(8, 3)} connections with 50 MB of incomplete messages closed, memory "
        f"{peak_mb - before_mb:+.0f} MB at most; {failures} items of other clients without a correct answer",
        passed=set(statuses) == {_INVALID_ARGUMENT}
        and closed == context.scaled(8, 3)
        and peak_mb - before_mb < 200
        and not failures,
        control=f"the same requests, whole: {_named(whole.elements())}",
        control_failed=set(whole) == {_OK},
        figures={"peak_mb": peak_mb - before_mb, "closed_connections": closed, "failed_items": failures},
    )


def _statuses(server: Server, requests: list[tuple[str, bytes]]) -> Counter[int | None]:
    """Returns the number of calls by status."""
    counts: Counter[int | None] = Counter()
    for method, data in requests:
        with Http2Client(server.port) as client:
            stream = client.open(method)
            client.send(stream, data)
            counts[client.finish(stream).status] += 1
    return counts


def _hold_incomplete(server: Server, connections: int) -> tuple[int, float]:
    """Sends messages but for their last byte; returns how many connections were closed, and the peak memory in MB."""
    part, peak_mb, closed = frame(bytes(3_900_000))[:-1], 0.0, 0
    for _ in range(connections):
        with Http2Client(server.port) as client:
            for _ in range(13):
                if not client.closed:
                    client.send(client.open(_STREAM), part, end=False)
                    peak_mb = max(peak_mb, rss_mb(server.process.pid))
            deadline = time.monotonic() + 30
            while not client.closed and time.monotonic() < deadline:
                client.receive(0.1)
            closed += client.closed
    return closed, peak_mb


@scenario(
    "unread responses",
    fault="A client that makes large unary calls and never reads a response",
    expected="Memory is bounded: beyond a limit its calls are rejected with RESOURCE_EXHAUSTED and a delay; other "
    "clients are answered",
)
async def unread_responses(context: Context) -> Verdict:
    """The control reads the responses of the same calls."""
    calls = context.scaled(100, 30)
    flags = ("--max-held-bytes", str(32 * 2**20))
    async with run_server(context.bundle, context.work_dir, *flags) as server:
        await _failures_of_others(context, server)
        before_mb = rss_mb(server.process.pid)
        with Http2Client(server.port, window=0) as client:
            unread = await asyncio.to_thread(_call_large, client, calls)
            growth_mb = rss_mb(server.process.pid) - before_mb
            failures = await _failures_of_others(context, server)
        with Http2Client(server.port) as client:
            read = await asyncio.to_thread(_call_large, client, calls)
    return Verdict(
        observed=f"{calls} calls with 1.8 MB of answers each: {unread[_RESOURCE_EXHAUSTED]} rejected, memory "
        f"{growth_mb:+.0f} MB; {failures} items of other clients without a correct answer",
        passed=unread[_RESOURCE_EXHAUSTED] >= calls - 8 and growth_mb < 100 and not failures,
        control=f"a client that reads: {read[_OK]} of {calls} calls answered",
        control_failed=read == {_OK: calls},
        figures={"calls": calls, "rejected": unread[_RESOURCE_EXHAUSTED], "growth_mb": growth_mb},
    )


def _call_large(client: Http2Client, calls: int) -> Counter[int | None]:
    """Makes large calls one after the other; returns their number by status, with None for those without an end."""
    counts: Counter[int | None] = Counter()
    for _ in range(calls):
        stream = client.open(_ANALYZE)
        client.send(stream, frame(_large_request()))
        # A response that may not be sent never ends; headers and rejections come at once.
        deadline = time.monotonic() + 60
        while not client.outcome(stream).headers and not client.closed and time.monotonic() < deadline:
            client.receive(0.05, acknowledge=True)
        counts[client.finish(stream, timeout_s=0.1 if not client.outcome(stream).data else 60).status] += 1
    return counts


@scenario(
    "compressed messages",
    fault="Messages of 15 kB that inflate to 15 MB, to methods that need no key and to those that do",
    expected="Methods without a key refuse compressed messages, the others bound what they inflate; no call inflates "
    "more than a small multiple of its size",
)
async def compressed_messages(context: Context) -> Verdict:
    """The control compresses ordinary messages."""
    bomb = gzip.compress(_large_request("a" * 15_000))
    ordinary = gzip.compress(pb2.AnalyzeRequest(items=[item_pb2.Item(text=context.texts[0])]).SerializeToString())
    async with run_server(context.bundle, context.work_dir) as server:
        await _failures_of_others(context, server)
        before_mb = rss_mb(server.process.pid)

        def call(method: str, message: bytes) -> int | None:
            with Http2Client(server.port) as client:
                return client.call(method, message, [("grpc-encoding", "gzip")], compressed=True).status

        public = [await asyncio.to_thread(call, "grpc.health.v1.Health/Check", bomb) for _ in range(20)]
        bombs = [await asyncio.to_thread(call, _ANALYZE, bomb) for _ in range(20)]
        growth_mb = rss_mb(server.process.pid) - before_mb
        control = await asyncio.to_thread(call, _ANALYZE, ordinary)
        failures = await _failures_of_others(context, server)
    return Verdict(
        observed=f"{len(public)} calls of the health service: {_named(public)}; {len(bombs)} inference "
        f"calls: {_named(bombs)}; memory {growth_mb:+.0f} MB; {failures} items of other clients without "
        "a correct answer",
        passed=set(public) == {_UNIMPLEMENTED}
        and set(bombs) == {_RESOURCE_EXHAUSTED}
        and growth_mb < 20
        and not failures,
        control=f"an ordinary message in gzip: {_named([control])}",
        control_failed=control == _OK,
        figures={"bombs": len(bombs) + len(public), "growth_mb": growth_mb},
    )


@scenario(
    "slow reader during shutdown",
    fault="SIGTERM while a client with a small flow-control window reads a large unary response slowly",
    expected="The response arrives whole and the exit code is 0; a response that is cut off is counted, and the exit "
    "code is 1",
)
async def slow_reader_during_shutdown(context: Context) -> Verdict:
    """The control is a client that does not read before the drain timeout."""

    # No more items than a stream accepts at once.
    message = frame(_large_request(items=512))

    async def stop(*flags: str, reads: bool) -> tuple[int, list[int | None], bool]:
        async with run_server(context.bundle, context.work_dir, "--drain-delay-s", "0", *flags) as server:
            with Http2Client(server.port) as unary, Http2Client(server.port) as streaming:

                def read() -> list[int | None]:
                    opened = [(unary, unary.open(_ANALYZE)), (streaming, streaming.open(_STREAM))]
                    for client, stream in opened:
                        client.send(stream, message)
                        while not client.outcome(stream).headers:
                            client.receive(0.1, acknowledge=True)
                    server.process.send_signal(signal.SIGTERM)
                    outcomes = [client.finish(stream, bytes_per_s=500_000) for client, stream in opened if reads]
                    return [one.status for one in outcomes if len(one.data) > _LARGE_BYTES]

                statuses = await asyncio.to_thread(read)
                code = await asyncio.to_thread(server.process.wait, 60)
            return code, statuses, "cut off: 2 calls" in server.log.read_text()

    code, statuses, _ = await stop(reads=True)
    control_code, _, counted = await stop("--drain-timeout-s", "2", reads=False)
    return Verdict(
        observed=f"responses of 0.9 MB, unary and of a stream, at 0.5 MB/s: {_named(statuses)}; exit code {code}",
        passed=(code, statuses) == (0, [_OK, _OK]),
        control=f"clients that do not read within --drain-timeout-s: exit code {control_code}"
        + (", and the log counts their calls" if counted else ""),
        control_failed=control_code == 1 and counted,
    )


@scenario(
    "capacity after a killed worker",
    fault="One of two workers is killed while clients keep their connections",
    expected="Within the connection age both workers have connections again, and no call of a plain stub fails",
)
async def capacity_after_a_killed_worker(context: Context) -> Verdict:
    """The control sets a connection age longer than the scenario."""
    shares, failures = await _share_after_kill(context, "4")
    control_shares, _ = await _share_after_kill(context, "3600")
    return Verdict(
        observed=f"connections of the two workers after twice --max-connection-age-s: {shares[0]} and {shares[1]}; "
        f"{failures} failed calls after the kill",
        passed=min(shares) > 0 and not failures,
        control=f"with --max-connection-age-s 3600: {control_shares[0]} and {control_shares[1]}",
        control_failed=min(control_shares) == 0,
        figures={"connections": sum(shares), "failed_calls": failures},
    )


async def _share_after_kill(context: Context, age_s: str) -> tuple[tuple[int, int], int]:
    """Returns the connections of the survivor and the replacement, and the failed calls after the kill."""
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=context.texts[0])])
    flags = ("--workers", "2", "--max-connection-age-s", age_s)
    log_dir = context.work_dir / age_s
    log_dir.mkdir()
    async with run_server(context.bundle, log_dir, *flags) as server:
        await wait_until(lambda: server.log.read_text().count("all 2 workers serve") == 1, "two workers serve")
        failures = 0
        counting = stopping = False

        async def call() -> None:
            nonlocal failures
            async with grpc.aio.insecure_channel(server.target, _OWN_CONNECTION) as channel:
                stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
                while not stopping:
                    try:
                        await stub.Analyze(request, timeout=60)
                    except grpc.aio.AioRpcError:
                        failures += counting
                    await asyncio.sleep(0.05)

        callers = [asyncio.create_task(call()) for _ in range(12)]
        await asyncio.sleep(1.0)
        victim, survivor = children(server.process.pid)
        os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: server.log.read_text().count("all 2 workers serve") == 2, "the replacement serves")
        counting = True
        (replacement,) = set(children(server.process.pid)) - {survivor}
        await asyncio.sleep(9.0)
        shares = count_connections(server.port, survivor), count_connections(server.port, replacement)
        stopping = True
        await asyncio.gather(*callers)
        return shares, failures

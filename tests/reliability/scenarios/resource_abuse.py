"""Clients that use more than their share: they never read, flood, cancel, or send in bulk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import AsyncClient

from bench.harness.texts import DEMO_TEXTS, ROOT
from tests.reliability.processes import Server, open_descriptors, rss_mb, run_server
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic

# Without this option, channels to one target share a connection.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# Without bandwidth probing, the client side of a connection buffers 64 kB of unread answers instead of megabytes.
_SMALL_BUFFER = [*_OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]
_WARM_UP_ITEMS = 500
# Time until the process of a load has started and filled the queue of the server.
_RAMP_UP_S = 3.0

# Returns the latencies and errors since the previous call.
ReadProbe = Callable[[], Awaitable[dict[str, float]]]


@contextlib.asynccontextmanager
async def probing(server: Server, *flags: str) -> AsyncIterator[ReadProbe]:
    """Sends small requests from a separate process; yields a function that reports their latencies."""
    command = [sys.executable, "-m", "tests.reliability.probe", server.target, *flags]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
    if process.stdin is None or process.stdout is None:
        raise SystemExit("the probe has no pipes")
    stdin, stdout = process.stdin, process.stdout

    async def read() -> dict[str, float]:
        stdin.write(b"\n")
        figures: dict[str, float] = json.loads(await stdout.readline())
        return figures

    await read()
    try:
        yield read
    finally:
        stdin.close()
        await process.wait()


@contextlib.asynccontextmanager
async def background_load(server: Server, seconds: float, *flags: str) -> AsyncIterator[dict[str, float]]:
    """Runs the load generator of the benchmarks; the yielded figures are filled in when the block ends."""
    command = [
        sys.executable,
        "-m",
        "bench.loadgen.main",
        server.target,
        str(DEMO_TEXTS),
        "--seconds",
        str(seconds),
        *flags,
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    figures: dict[str, float] = {}
    await asyncio.sleep(_RAMP_UP_S)
    yield figures
    if process.returncode is not None:
        raise SystemExit(f"the load generator exited early with code {process.returncode}")
    output, _ = await process.communicate()
    figures.update(json.loads(output))


async def _warm_up(context: Context, server: Server) -> float:
    """Warms the server up with some traffic; returns the resident memory in MB afterwards."""
    traffic = Traffic(context.reference_answers, context.texts)
    async with AsyncClient(server.target) as client, traffic.flowing([client]):
        await traffic.flow_until(_WARM_UP_ITEMS // 2)
    return rss_mb(server.process.pid)


def _stub(channel: grpc.aio.Channel) -> Any:
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


def _message(text: str, items: int = 1) -> pb2.StreamAnalyzeRequest:
    return pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)] * items)


@scenario(
    "unread streams",
    fault="Streams that send endlessly and never read an answer",
    expected="The server stops reading them, their memory is bounded and other clients are answered as before",
    timed=True,
)
async def unread_streams(context: Context) -> Verdict:
    """The control is a server whose stream window is so large that it keeps reading."""
    streams = context.scaled(20, 5)
    async with run_server(context.bundle, context.work_dir) as server:
        before_mb = await _warm_up(context, server)
        accepted, late = await _send_unread(server, streams)
        growth_mb = rss_mb(server.process.pid) - before_mb
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
    async with run_server(context.bundle, context.work_dir, "--stream-window", "1000000") as server:
        await _warm_up(context, server)
        _, control_late = await _send_unread(server, 2)
    return Verdict(
        observed=f"{streams} streams: {accepted / streams:.0f} texts accepted from each, then none; memory "
        f"{growth_mb:+.1f} MB; {traffic.failures()} of {len(traffic.requests)} items of other clients without a "
        "correct answer",
        passed=late == 0 and growth_mb < 2.0 * streams and not traffic.failures() and len(traffic.requests) >= 100,
        control=f"with --stream-window 1000000 the server still accepts {control_late:,} texts in the last 3 s of 15",
        control_failed=control_late > 0,
        figures={"streams": streams, "accepted_texts_per_stream": accepted / streams, "growth_mb": growth_mb},
    )


async def _send_unread(server: Server, streams: int) -> tuple[int, int]:
    """Returns how many texts the server accepted, and how many of them in the last interval of 3 s."""
    counts = [0] * streams
    # Many bytes fill the buffers of gRPC quickly, and a single unknown word costs the model little.
    message = _message("x" * 400)

    async def send(number: int, channel: grpc.aio.Channel) -> None:
        call = _stub(channel).StreamAnalyze()
        while True:
            await call.write(message)
            counts[number] += 1

    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(server.target, _SMALL_BUFFER) for _ in range(streams)]
        for channel in channels:
            await stack.enter_async_context(channel)
        tasks = [asyncio.create_task(send(number, channel)) for number, channel in enumerate(channels)]
        accepted, late = 0, -1
        for _ in range(5):
            if not late:
                break
            await asyncio.sleep(3.0)
            accepted, late = sum(counts), sum(counts) - accepted
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return accepted, late


@scenario(
    "flooding streams",
    fault="100 streams that send as fast as the server reads",
    expected="Memory is bounded; concurrent single calls are scheduled fairly and do not wait for the texts that the "
    "streams sent before them",
    timed=True,
)
async def flooding_streams(context: Context) -> Verdict:
    """Uses the load generator of the benchmarks. The control is the latency of the flood itself."""
    seconds = context.scaled(20, 5)
    flood = ("--mode", "stream", "--items", "8", "--in-flight", "6400", "--connections", "100")
    async with run_server(context.bundle, context.work_dir) as server:
        before_mb = await _warm_up(context, server)
        async with probing(server, "--text", context.texts[0]) as read_probe:
            await asyncio.sleep(seconds / 2)
            alone = await read_probe()
        async with background_load(server, 2 * seconds + 15, *flood) as flood_figures:
            traffic = Traffic(context.reference_answers, context.texts)
            async with (
                probing(server, "--text", context.texts[0]) as read_probe,
                AsyncClient(server.target) as client,
                traffic.flowing([client], calls=1, items=1, streams=1),
            ):
                await asyncio.sleep(seconds)
                during = await read_probe()
            during_mb = rss_mb(server.process.pid)
        await asyncio.sleep(2.0)
        after_mb = rss_mb(server.process.pid)
    return Verdict(
        observed=f"memory {during_mb - before_mb:+.0f} MB during the flood and {after_mb - before_mb:+.0f} MB after "
        f"it; single calls: p50 {during['p50_ms']:.0f} ms and p99 {during['p99_ms']:.0f} ms during the flood, "
        f"{alone['p50_ms']:.0f} and {alone['p99_ms']:.0f} ms without it; {traffic.failures()} of "
        f"{len(traffic.requests)} other items without a correct answer",
        passed=during_mb - before_mb < 150
        and during["p50_ms"] < flood_figures["p50_ms"] / 3
        and not traffic.failures()
        and not during["errors"],
        control=f"texts of the flood, which wait for each other: p50 {flood_figures['p50_ms']:,.0f} ms",
        control_failed=flood_figures["p50_ms"] > 3 * during["p50_ms"],
        figures={
            "during_mb": during_mb - before_mb,
            "after_mb": after_mb - before_mb,
            **{f"alone_{name}": alone[name] for name in ("p50_ms", "p99_ms")},
            **{f"during_{name}": during[name] for name in ("p50_ms", "p99_ms")},
            "flood_p50_ms": flood_figures["p50_ms"],
            "flood_items_per_s": flood_figures["items_per_s"],
        },
    )


@scenario(
    "bulk stream",
    fault="One stream that sends in bulk during single calls",
    expected="A single call waits for a few batches, not for the whole bulk",
    timed=True,
)
async def bulk_stream(context: Context) -> Verdict:
    """The control sends the same load as many single calls, with which the scheduler shares the server fairly."""
    seconds = context.scaled(15, 4)
    latencies: dict[str, dict[str, float]] = {}
    async with run_server(context.bundle, context.work_dir) as server:
        await _warm_up(context, server)
        loads = {
            "alone": None,
            "during bulk": ("--mode", "stream", "--items", "32", "--in-flight", "512"),
            "during 512 calls": ("--mode", "unary", "--items", "1", "--in-flight", "512"),
        }
        for name, flags in loads.items():
            async with (
                background_load(server, seconds + 12, *flags) if flags else contextlib.nullcontext(),
                probing(server, "--text", context.texts[0]) as read_probe,
            ):
                await asyncio.sleep(seconds)
                latencies[name] = await read_probe()
    alone, during, contended = latencies.values()
    return Verdict(
        observed=f"single calls: p50 {alone['p50_ms']:.0f} ms and p99 {alone['p99_ms']:.0f} ms alone, "
        f"{during['p50_ms']:.0f} and {during['p99_ms']:.0f} ms during the bulk",
        passed=during["p99_ms"] < 250 and not during["errors"],
        control=f"with 512 single calls in flight, which are scheduled fairly as well: p50 {contended['p50_ms']:,.0f} "
        "ms",
        control_failed=contended["p50_ms"] > 250,
        figures={
            f"{name.replace(' ', '_')}_{rank}": figures[rank]
            for name, figures in latencies.items()
            for rank in ("p50_ms", "p99_ms")
        },
    )


@scenario(
    "cancelled streams",
    fault="20,000 streams that are cancelled after their first text",
    expected="Memory grows by less than 1 kB per stream; no file descriptor leaks",
)
async def cancelled_streams(context: Context) -> Verdict:
    """The control measures streams that stay open in the same way."""
    streams = context.scaled(20_000, 2_000)
    # The control opens more streams on one connection than the default allows.
    async with run_server(context.bundle, context.work_dir, "--max-calls-per-connection", "10000") as server:
        pid = server.process.pid
        await _warm_up(context, server)
        await cancel_streams(context, server.target, streams // 10)
        before, open_before = rss_mb(pid), open_descriptors(pid)
        await cancel_streams(context, server.target, streams)
        await asyncio.sleep(1.0)
        growth_kb = 1024 * (rss_mb(pid) - before) / streams
        leaked = open_descriptors(pid) - open_before
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
        held = context.scaled(2_000, 500)
        before = rss_mb(pid)
        async with grpc.aio.insecure_channel(server.target) as channel:
            calls = [_stub(channel).StreamAnalyze() for _ in range(held)]
            for call in calls:
                with contextlib.suppress(*_ENDED_EARLY):
                    await call.write(_message(context.texts[0]))
            await asyncio.sleep(2.0)
            held_kb = 1024 * (rss_mb(pid) - before) / sum(not call.done() for call in calls)
            for call in calls:
                call.cancel()
    return Verdict(
        observed=f"{streams:,} streams: {growth_kb:.2f} kB per stream, {leaked:+d} descriptors; {traffic.failures()} "
        f"of {len(traffic.requests)} later items without a correct answer",
        passed=growth_kb < (4.0 if context.quick else 1.0)
        and leaked <= 2
        and not traffic.failures()
        and len(traffic.requests) >= 100,
        control=f"{held:,} open streams: {held_kb:.1f} kB per stream",
        control_failed=held_kb > 1.0,
        figures={"streams": streams, "kb_per_stream": growth_kb, "descriptors": leaked, "kb_per_open_stream": held_kb},
    )


# An overloaded server ends some streams before it reads them.
_ENDED_EARLY = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


async def cancel_streams(context: Context, target: str, streams: int) -> None:
    """Opens streams, sends a text on each and cancels them: half at once, half when an answer may have arrived."""

    async def one(stub: Any, number: int) -> None:
        call = stub.StreamAnalyze()
        with contextlib.suppress(*_ENDED_EARLY):
            await call.write(_message(context.texts[number % len(context.texts)]))
            if number % 2:
                await asyncio.sleep(0.02)
        call.cancel()

    async with grpc.aio.insecure_channel(target) as channel:
        stub = _stub(channel)
        for first in range(0, streams, 50):
            await asyncio.gather(*(one(stub, number) for number in range(first, min(first + 50, streams))))

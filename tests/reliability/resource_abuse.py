"""Clients that take more than their part: that never read, that flood, that hang up, that send in bulk."""

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

from .processes import Server, open_descriptors, rss_mb, run_server
from .scenario import Context, Verdict, scenario
from .traffic import Traffic

# Channels to one target share a connection unless they are told not to.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# Without probing, the client's side of a connection takes 64 kB of answers that nobody reads, and not megabytes.
_SMALL_CONNECTION = [*_OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]
_WARM_UP_ITEMS = 500
# Until a load's process has started and filled the server.
_UNDER_WAY_S = 3.0


Ask = Callable[[], Awaitable[dict[str, float]]]


@contextlib.asynccontextmanager
async def probing(server: Server, *flags: str) -> AsyncIterator[Ask]:
    """Asks the server small things, in a process of its own; yields what tells what it saw since it was last asked."""
    command = [sys.executable, "-m", "tests.reliability.probe", server.target, *flags]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
    if process.stdin is None or process.stdout is None:
        raise SystemExit("the probe has no pipes")
    told, heard = process.stdin, process.stdout

    async def ask() -> dict[str, float]:
        told.write(b"\n")
        figures: dict[str, float] = json.loads(await heard.readline())
        return figures

    await ask()
    try:
        yield ask
    finally:
        told.close()
        await process.wait()


@contextlib.asynccontextmanager
async def loaded(server: Server, seconds: float, *flags: str) -> AsyncIterator[dict[str, float]]:
    """A load of bench/loadgen/main.py for so long; its own figures are there when the block is left."""
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
    await asyncio.sleep(_UNDER_WAY_S)
    yield figures
    if process.returncode is not None:
        raise SystemExit(f"the load ended early, with {process.returncode}")
    output, _ = await process.communicate()
    figures.update(json.loads(output))


async def _warm(context: Context, server: Server) -> float:
    """Answers some traffic first; returns the resident memory after it."""
    traffic = Traffic(context.reference_answers, context.texts)
    async with AsyncClient(server.target) as client, traffic.flowing([client]):
        await traffic.flow_until(_WARM_UP_ITEMS // 2)
    return rss_mb(server.process.pid)


def _stub(channel: grpc.aio.Channel) -> Any:
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


def _message(text: str, items: int = 1) -> pb2.StreamAnalyzeRequest:
    return pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)] * items)


@scenario(
    "silent readers",
    fault="streams that send without end and never read an answer",
    expected="the server stops reading them, their memory is bounded, and others are answered as before",
    timed=True,
)
async def silent_readers(context: Context) -> Verdict:
    """The control: a server with a window so large that it goes on reading."""
    streams = context.scaled(20, 5)
    async with run_server(context.bundle, context.work_dir) as server:
        before = await _warm(context, server)
        taken, more = await _send_unread(server, streams)
        grown = rss_mb(server.process.pid) - before
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
    async with run_server(context.bundle, context.work_dir, "--stream-window", "1000000") as server:
        await _warm(context, server)
        _, control = await _send_unread(server, 2)
    return Verdict(
        observed=f"{streams} streams: {taken / streams:.0f} texts taken of each, then none; {grown:+.1f} MB; of "
        f"{len(traffic.requests)} items sent beside them by others {traffic.failures()} were not answered rightly",
        passed=more == 0 and grown < 2.0 * streams and not traffic.failures() and len(traffic.requests) >= 100,
        control=f"with --stream-window 1000000 {control:,} texts were still taken in the last 3 s of 15",
        control_failed=control > 0,
        figures={"streams": streams, "texts_taken_of_each": taken / streams, "grown_mb": grown},
    )


async def _send_unread(server: Server, streams: int) -> tuple[int, int]:
    """Texts that the server took until it took no more, and those that it still took when patience ended."""
    counts = [0] * streams
    # Many bytes, so that gRPC's own buffers are soon full; and one unknown word, so that it costs the model little.
    message = _message("x" * 400)

    async def send(number: int, channel: grpc.aio.Channel) -> None:
        call = _stub(channel).StreamAnalyze()
        while True:
            await call.write(message)
            counts[number] += 1

    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(server.target, _SMALL_CONNECTION) for _ in range(streams)]
        for channel in channels:
            await stack.enter_async_context(channel)
        tasks = [asyncio.create_task(send(number, channel)) for number, channel in enumerate(channels)]
        seen, more = 0, -1
        for _ in range(5):
            if not more:
                break
            await asyncio.sleep(3.0)
            seen, more = sum(counts), sum(counts) - seen
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen, more


@scenario(
    "flooding streams",
    fault="100 streams that send as fast as the server reads",
    expected="memory stays; a single call beside them has its turn, and does not wait for what they have sent before",
    timed=True,
)
async def flooding_streams(context: Context) -> Verdict:
    """By bench/loadgen/main.py, in a process of its own."""
    seconds = context.scaled(20, 5)
    flood = ("--mode", "stream", "--items", "8", "--in-flight", "6400", "--connections", "100")
    async with run_server(context.bundle, context.work_dir) as server:
        before = await _warm(context, server)
        async with probing(server, "--text", context.texts[0]) as ask:
            await asyncio.sleep(seconds / 2)
            alone = await ask()
        async with loaded(server, 2 * seconds + 15, *flood) as itself:
            traffic = Traffic(context.reference_answers, context.texts)
            async with (
                probing(server, "--text", context.texts[0]) as ask,
                AsyncClient(server.target) as client,
                traffic.flowing([client], calls=1, items=1, streams=1),
            ):
                await asyncio.sleep(seconds)
                beside = await ask()
            during = rss_mb(server.process.pid)
        await asyncio.sleep(2.0)
        after = rss_mb(server.process.pid)
    return Verdict(
        observed=f"{during - before:+.0f} MB during the flood, {after - before:+.0f} MB after it; single calls: p50 "
        f"{beside['p50_ms']:.0f} ms, p99 {beside['p99_ms']:.0f} ms, alone {alone['p50_ms']:.0f} and "
        f"{alone['p99_ms']:.0f} ms; {traffic.failures()} of {len(traffic.requests)} items beside it not answered rightly",
        passed=during - before < 150
        and beside["p50_ms"] < itself["p50_ms"] / 3
        and not traffic.failures()
        and not beside["errors"],
        control=f"the flood's own texts, which wait for one another: p50 {itself['p50_ms']:,.0f} ms",
        control_failed=itself["p50_ms"] > 3 * beside["p50_ms"],
        figures={
            "during_mb": during - before,
            "after_mb": after - before,
            **{f"alone_{name}": alone[name] for name in ("p50_ms", "p99_ms")},
            **{f"beside_{name}": beside[name] for name in ("p50_ms", "p99_ms")},
            "flood_p50_ms": itself["p50_ms"],
            "flood_items_per_s": itself["items_per_s"],
        },
    )


@scenario(
    "bulk stream",
    fault="one stream that sends in bulk beside single calls",
    expected="a single call waits for a few passes, not for the bulk",
    timed=True,
)
async def bulk_stream(context: Context) -> Verdict:
    """The control: the same load as many single calls, each of which has its turn."""
    seconds = context.scaled(15, 4)
    found: dict[str, dict[str, float]] = {}
    async with run_server(context.bundle, context.work_dir) as server:
        await _warm(context, server)
        loads = {
            "alone": None,
            "beside the bulk": ("--mode", "stream", "--items", "32", "--in-flight", "512"),
            "beside 512 calls": ("--mode", "unary", "--items", "1", "--in-flight", "512"),
        }
        for name, flags in loads.items():
            async with (
                loaded(server, seconds + 12, *flags) if flags else contextlib.nullcontext(),
                probing(server, "--text", context.texts[0]) as ask,
            ):
                await asyncio.sleep(seconds)
                found[name] = await ask()
    alone, beside, crowd = found.values()
    return Verdict(
        observed=f"single calls: p50 {alone['p50_ms']:.0f} ms and p99 {alone['p99_ms']:.0f} ms alone, "
        f"{beside['p50_ms']:.0f} and {beside['p99_ms']:.0f} ms beside the bulk",
        passed=beside["p99_ms"] < 250 and not beside["errors"],
        control=f"beside 512 single calls in flight, which have their turns as well: p50 {crowd['p50_ms']:.0f} ms",
        control_failed=crowd["p50_ms"] > 250,
        figures={
            f"{name.replace(' ', '_')}_{rank}": figures[rank]
            for name, figures in found.items()
            for rank in ("p50_ms", "p99_ms")
        },
    )


@scenario(
    "cancelled streams",
    fault="20,000 streams cancelled after their first text",
    expected="less than 1 kB of memory for each, no descriptor and no thread stays",
)
async def cancelled_streams(context: Context) -> Verdict:
    """The control: streams that are kept open are seen by the same measure."""
    streams = context.scaled(20_000, 2_000)
    async with run_server(context.bundle, context.work_dir) as server:
        pid = server.process.pid
        await _warm(context, server)
        await cancel_streams(context, server.target, streams // 10)
        before, open_before = rss_mb(pid), open_descriptors(pid)
        await cancel_streams(context, server.target, streams)
        await asyncio.sleep(1.0)
        grown_kb = 1024 * (rss_mb(pid) - before) / streams
        opened = open_descriptors(pid) - open_before
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
        held = context.scaled(2_000, 500)
        before = rss_mb(pid)
        async with grpc.aio.insecure_channel(server.target) as channel:
            calls = [_stub(channel).StreamAnalyze() for _ in range(held)]
            for call in calls:
                with contextlib.suppress(*_ENDED_UNSEEN):
                    await call.write(_message(context.texts[0]))
            await asyncio.sleep(2.0)
            held_kb = 1024 * (rss_mb(pid) - before) / sum(not call.done() for call in calls)
            for call in calls:
                call.cancel()
    return Verdict(
        observed=f"{streams:,} streams: {grown_kb:.2f} kB for each, {opened:+d} descriptors; of {len(traffic.requests)} "
        f"items sent after them {traffic.failures()} were not answered rightly",
        passed=grown_kb < (4.0 if context.quick else 1.0)
        and opened <= 2
        and not traffic.failures()
        and len(traffic.requests) >= 100,
        control=f"{held:,} streams kept open: {held_kb:.1f} kB for each",
        control_failed=held_kb > 1.0,
        figures={"streams": streams, "kb_each": grown_kb, "descriptors": opened, "kb_each_kept_open": held_kb},
    )


# A server that falls behind ends some streams before it looks at them.
_ENDED_UNSEEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


async def cancel_streams(context: Context, target: str, streams: int) -> None:
    """Opens streams, sends a text on each, hangs up; half of them before and half after an answer may have come."""

    async def one(stub: Any, number: int) -> None:
        call = stub.StreamAnalyze()
        with contextlib.suppress(*_ENDED_UNSEEN):
            await call.write(_message(context.texts[number % len(context.texts)]))
            if number % 2:
                await asyncio.sleep(0.02)
        call.cancel()

    async with grpc.aio.insecure_channel(target) as channel:
        stub = _stub(channel)
        for begun in range(0, streams, 50):
            await asyncio.gather(*(one(stub, number) for number in range(begun, min(begun + 50, streams))))

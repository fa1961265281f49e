"""Requests that cost the server far more than they cost to send, and what they cost other clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import AsyncClient
from polyhead_server.engines.collate import pad
from polyhead_server.inference.model import Model, load_model
from polyhead_server.settings import Settings

from tests.reliability.processes import Server, rss_mb, run_server, run_server_with_client
from tests.reliability.recalibrated_bundle import write_bundle_with_other_head
from tests.reliability.reference_answers import TOLERANCE
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic

from .resource_abuse import probing

_UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_MAX_ITEMS = 1024
# An error with its details and the largest id that an answer repeats.
_MAX_ERROR_BYTES = 1280
_QUEUE_TOKENS = 20_000
# Not ASCII and too long to be tokenized on the event loop.
_LONG_TEXT = "Wo bleibt meine R\u00fcckerstattung? " * 20
# A word of a hundred letters is the most expensive one for WordPiece.
_EXPENSIVE_TEXT = ("z" * 100 + " ") * 310


def _stub(channel: grpc.aio.Channel) -> Any:
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


def _connect(server: Server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.target, [*_UNBOUNDED, ("grpc.use_local_subchannel_pool", 1)])


def rejected_messages() -> dict[str, pb2.AnalyzeRequest]:
    """Returns messages of as many items as the server allows, all of which it rejects, by kind."""
    items = [item_pb2.Item()] * _MAX_ITEMS

    def expecting(space: str, head: str = "", fingerprint: str = "") -> item_pb2.ItemOptions:
        heads = [item_pb2.HeadFingerprint(head=head, fingerprint=fingerprint)] if head else []
        return item_pb2.ItemOptions(
            expected_fingerprints=item_pb2.Fingerprints(embedding_space=space, heads=heads),
        )

    unknown: Any = 77
    return {
        "fingerprint of 60,000 letters": pb2.AnalyzeRequest(items=items, options=expecting("a" * 60_000)),
        "other fingerprint": pb2.AnalyzeRequest(items=items, options=expecting("0" * 16)),
        "name of a head of 60,000 letters": pb2.AnalyzeRequest(
            items=items, options=expecting("", "a" * 60_000, "0" * 16)
        ),
        "unknown truncation policy": pb2.AnalyzeRequest(items=items, options=item_pb2.ItemOptions(truncation=unknown)),
        "too many dimensions": pb2.AnalyzeRequest(
            items=items, embedding_options=item_pb2.EmbeddingOptions(dimensions=2**31)
        ),
    }


@scenario(
    "amplified errors",
    fault="Messages of 1,024 items that are rejected, with options of up to 60,000 letters, whose answers nobody reads",
    expected="Every answer stays below 1.3 kB and repeats nothing of the options; memory grows little",
)
async def amplified_errors(context: Context) -> Verdict:
    """The control judges errors that repeat an option."""
    kinds = rejected_messages()
    largest: dict[str, int] = {}
    repeated = 0
    async with (
        run_server_with_client(context.bundle, context.work_dir) as (server, client),
        _connect(server) as channel,
    ):
        for kind, request in kinds.items():
            response = await _stub(channel).Analyze(request)
            largest[kind] = max(answer.ByteSize() for answer in response.answers)
            repeated += len(response.answers) != _MAX_ITEMS or b"a" * 64 in response.SerializeToString()
        before_mb = rss_mb(server.process.pid)
        unread = context.scaled(100, 20)
        calls = [_stub(channel).Analyze(kinds["fingerprint of 60,000 letters"]) for _ in range(unread)]
        await asyncio.sleep(1.0)
        growth_mb = rss_mb(server.process.pid) - before_mb
        for call in calls:
            call.cancel()
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    echo = item_pb2.Answer()
    echo.error.message = "expected " + "a" * 60_000
    return Verdict(
        observed=f"{len(kinds)} kinds: answers of at most {max(largest.values())} bytes; {repeated} repeat an option; "
        f"memory {growth_mb:+.1f} MB after {unread} calls; {traffic.failures()} of {len(traffic.requests)} other items "
        "without a correct answer",
        passed=max(largest.values()) < _MAX_ERROR_BYTES
        and not repeated
        and growth_mb < 1.0 * unread
        and not traffic.failures(),
        control=f"an error that repeats the option has {echo.ByteSize():,} bytes",
        control_failed=echo.ByteSize() >= _MAX_ERROR_BYTES,
        figures={"largest_answer_bytes": max(largest.values()), "calls": unread, "growth_mb": growth_mb},
    )


@scenario(
    "rejected messages",
    fault="64 calls in flight, each with 1,024 items that are rejected",
    expected="Single calls of other clients wait for a few parts of these messages, not for all of them",
    timed=True,
)
async def rejected_messages_in_flight(context: Context) -> Verdict:
    """The control is the latency of the calls that are rejected: they share the event loop with each other."""
    seconds, in_flight = context.scaled(10, 4), 64
    latencies: list[float] = []
    request = rejected_messages()["other fingerprint"]
    async with (
        run_server(context.bundle, context.work_dir) as server,
        _connect(server) as channel,
        probing(server, "--text", context.texts[0]) as read_probe,
    ):
        await asyncio.sleep(seconds / 2)
        alone = await read_probe()
        end = time.monotonic() + seconds

        async def flood() -> None:
            while time.monotonic() < end:
                started = time.monotonic()
                await _stub(channel).Analyze(request)
                latencies.append(1000 * (time.monotonic() - started))

        await asyncio.gather(*(flood() for _ in range(in_flight)))
        during = await read_probe()
    flood_p50 = sorted(latencies)[len(latencies) // 2]
    return Verdict(
        observed=f"single calls: p50 {alone['p50_ms']:.1f} ms alone and {during['p50_ms']:.1f} ms during "
        f"{len(latencies) / seconds:.0f} rejected messages a second",
        passed=during["p50_ms"] < flood_p50 / 4 and during["p50_ms"] < 20 * alone["p50_ms"] and not during["errors"],
        control=f"the rejected messages, which wait for each other: p50 {flood_p50:.0f} ms",
        control_failed=flood_p50 > 4 * during["p50_ms"],
        figures={
            "alone_p50_ms": alone["p50_ms"],
            "during_p50_ms": during["p50_ms"],
            "rejected_p50_ms": flood_p50,
            "rejected_messages_per_s": len(latencies) / seconds,
        },
    )


@contextlib.asynccontextmanager
async def open_streams(channel: grpc.aio.Channel, request: pb2.StreamAnalyzeRequest, count: int) -> AsyncIterator[None]:
    """Sends one message over each of several streams, reads their answers and cancels them at the end of the block."""

    async def stream() -> None:
        call = _stub(channel).StreamAnalyze()
        await call.write(request)
        async for _ in call:
            pass

    tasks = [asyncio.create_task(stream()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(client: AsyncClient, text: str, calls: int) -> Counter[str]:
    """Sends unary calls of one text, and a stream of one text; counts the codes of their errors, or ``ok``."""
    codes: Counter[str] = Counter()
    for _ in range(calls):
        (answer,) = await client.analyze([text], deadline_s=20)
        codes[answer.error.code if answer.error else "ok"] += 1

    async def one() -> AsyncIterator[str]:
        yield text

    async for answer in client.stream(one(), deadline_s=20):
        codes[answer.error.code if answer.error else "ok"] += 1
    return codes


@scenario(
    "message that fills the queue",
    fault="A stream message of 1,024 texts that are read in windows, with several times the tokens of the whole queue",
    expected="It enters the queue in parts; calls and streams of other clients are answered meanwhile",
)
async def message_that_fills_the_queue(context: Context) -> Verdict:
    """The control is the number of tokens that the message would add as a whole."""
    calls = context.scaled(100, 20)
    options = item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_WINDOW)
    texts = [f"{number} " + "a b c d " * 1000 for number in range(_MAX_ITEMS)]
    flags = ("--max-queue-tokens", str(_QUEUE_TOKENS))
    async with run_server_with_client(context.bundle, context.work_dir, *flags) as (server, client):
        # The client does not retry what the server rejects for good; these calls must not be rejected at all.
        (window,) = await client.analyze([texts[0]], truncation="window", deadline_s=60)
        tokens = window.unwrap().truncation.tokens_used * _MAX_ITEMS
        request = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text) for text in texts], options=options)
        async with _connect(server) as channel, open_streams(channel, request, 1):
            await asyncio.sleep(1.0)
            codes = await _ask(client, context.texts[0], calls)
    return Verdict(
        observed=f"{codes['ok']} of {codes.total()} items of other clients answered while the message of {tokens:,} "
        f"tokens is computed, with a queue of {_QUEUE_TOKENS:,}",
        passed=codes["ok"] == codes.total() == calls + 1,
        control=f"as a whole the message would add {tokens:,} tokens to the queue",
        control_failed=tokens > 2 * _QUEUE_TOKENS,
        figures={"message_tokens": tokens, "items": codes.total(), "answered": codes["ok"]},
    )


@scenario(
    "expensive words",
    fault="Stream messages of texts of words of 100 letters, the most expensive to tokenize",
    expected="Texts of other clients that are tokenized by the same thread are answered",
)
async def expensive_words(context: Context) -> Verdict:
    """The control is a call with as many expensive texts as one stream, which cannot be tokenized in time."""
    calls, streams = context.scaled(50, 10), context.scaled(8, 4)
    items = [item_pb2.Item(text=_EXPENSIVE_TEXT)] * 500
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        await client.analyze([_LONG_TEXT], deadline_s=60)
        async with _connect(server) as channel, open_streams(channel, pb2.StreamAnalyzeRequest(items=items), streams):
            await asyncio.sleep(1.0)
            codes = await _ask(client, _LONG_TEXT, calls)
            late = 0
            with contextlib.suppress(grpc.aio.AioRpcError):
                response = await _stub(channel).Analyze(pb2.AnalyzeRequest(items=items), timeout=5)
                late -= sum(answer.HasField("result") for answer in response.answers)
            late += len(items)
    return Verdict(
        observed=f"{codes['ok']} of {codes.total()} long texts of other clients answered beside {streams} messages of "
        f"{len(items)} expensive texts",
        passed=codes["ok"] == codes.total() == calls + 1,
        control=f"{late} of {len(items)} texts of a call that has as many of them get no answer within 5 s",
        control_failed=late > 0,
        figures={"items": codes.total(), "answered": codes["ok"], "streams": streams, "late_expensive_texts": late},
    )


@scenario(
    "windows of a confident head",
    fault="Long texts read in windows, with a head whose logits differ by hundreds",
    expected=f"Every probability is that of the mean logits, within {TOLERANCE:g}",
)
async def windows_of_a_confident_head(context: Context) -> Verdict:
    """The control pools the float32 probabilities of the windows instead of their logits."""
    sharp = write_bundle_with_other_head(context.bundle, context.work_dir / "sharp", 0.01)
    model = load_model(Settings(bundle=sharp, device="cpu", max_batch_tokens=1))
    head = next(head for head in model.source.manifest.heads if head.kind == "softmax")
    size = context.scaled(40, 10)
    texts = [" ".join(context.texts[begin : begin + 30]) for begin in range(0, 4 * size, 4)]
    largest = lossy = 0.0
    async with run_server_with_client(sharp, context.work_dir) as (_, client):
        for text, answer in zip(texts, await client.analyze(texts, truncation="window", deadline_s=120), strict=True):
            found = answer.unwrap().classification
            by_label = {score.label: score.probability for score in found.scores} if found else {}
            logits, weights = _window_logits(model, text)
            expected = _softmax((weights @ logits) / head.temperature)
            largest = max(largest, _difference([by_label.get(label, np.nan) for label in head.labels], expected))
            rounded = _softmax(logits / head.temperature).astype(np.float32)
            with np.errstate(divide="ignore"):
                powers = np.exp(weights @ np.log(np.maximum(rounded, np.finfo(np.float32).tiny)))
            lossy = max(lossy, _difference(powers / powers.sum(), expected))
    return Verdict(
        observed=f"{len(texts)} texts: probabilities off by at most {largest:.1e}",
        passed=largest <= TOLERANCE,
        control=f"pooled from float32 probabilities, they would be off by up to {lossy:.1e}",
        control_failed=lossy > TOLERANCE,
        figures={"texts": len(texts), "largest_difference": largest, "control_difference": lossy},
    )


def _window_logits(model: Model, text: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the logits (W, labels) of a text's windows for the first head, and the weight of each window (W,)."""
    (tokens,) = model.tokenizer.encode([text], Settings.max_windows)
    manifest = model.source.manifest
    rows = [model.engine.run(*pad([window], manifest.pad_token_id))[1][0] for window in tokens.windows]
    lengths = np.array([len(window) for window in tokens.windows], np.float64)
    return np.stack(rows).astype(np.float64), lengths / lengths.sum()


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _difference(found: Sequence[float] | NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    difference = float(np.abs(np.asarray(found) - expected).max())
    return difference if difference == difference else float("inf")  # noqa: PLR0124 - NaN is infinitely wrong

"""Messages that are malformed or too large, sent as raw bytes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_client import AsyncClient
from polyhead_client.conversion import answers_of

from tests.reliability.processes import Server, rss_mb, run_server, run_server_with_client
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic

_STREAM = "/polyhead.v1.InferenceService/StreamAnalyze"
_ANALYZE = "/polyhead.v1.InferenceService/Analyze"
_UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# Status codes that blame the server. A call may only fail with a code that names the mistake of the client.
_SERVER_FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
}


def malformed_messages(valid: bytes) -> Mapping[str, bytes]:
    """Returns malformed messages by kind."""
    rng = random.Random(0)
    return {
        "a text that is not UTF-8": pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="bad", text="????")])
        .SerializeToString()
        .replace(b"????", b"\xff\xfe\xc3("),
        "an id that is not UTF-8": pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="????", text="text")])
        .SerializeToString()
        .replace(b"????", b"\xff\xfe\xc3("),
        "a truncated message": valid[: len(valid) // 2],
        "random bytes": rng.randbytes(1000),
        "a field of unknown number and type": b"\xff" * 20,
        "a length beyond the end": b"\x0a\xff\xff\xff\x7f",
        "an unknown task": pb2.AnalyzeRequest(
            items=[item_pb2.Item(item_id="bad", text="text")],
            tasks=[99],  # type: ignore[list-item]
        ).SerializeToString(),
        "100,000 empty items": b"\x0a\x00" * 100_000,
    }


@scenario(
    "malformed stream messages",
    fault="Malformed messages between valid messages of the same stream",
    expected="Each malformed message is answered with an error and each valid one correctly; the stream stays open",
)
async def malformed_stream_messages(context: Context) -> Verdict:
    """The control parses the messages as gRPC does by default, which ends the stream at the first failure."""
    text = context.texts[0]
    valid = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(item_id="valid", text=text)]).SerializeToString()
    kinds = malformed_messages(valid)
    counts: Counter[str] = Counter()
    answered = 0
    async with (
        run_server(context.bundle, context.work_dir) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        call: Any = channel.stream_stream(_STREAM)()
        for malformed in kinds.values():
            for message in (valid, malformed, valid):
                await call.write(message)
                response = pb2.StreamAnalyzeResponse.FromString(await call.read())
                (answer,) = answers_of(response, pb2.StreamAnalyzeRequest())
                if message == malformed:
                    answered += answer.error is not None
                elif answer.result is not None:
                    counts[context.reference_answers.judge(text, answer.result)] += 1
        await call.done_writing()
        code = await call.code()
    rejected = sum(_is_rejected(malformed) for malformed in kinds.values())
    return Verdict(
        observed=f"{len(kinds)} kinds of malformed messages: {answered} answered with an error; {counts['correct']} of "
        f"{2 * len(kinds)} valid messages between them answered correctly; the stream ended with {code.name}",
        passed=answered == len(kinds) and counts["correct"] == 2 * len(kinds) and code is grpc.StatusCode.OK,
        control=f"protobuf rejects {rejected} of the kinds, and by default gRPC then ends the stream",
        control_failed=rejected > 0,
        figures={"kinds": len(kinds), "answered": answered, "correct": counts["correct"]},
    )


def _is_rejected(message: bytes) -> bool:
    try:
        pb2.StreamAnalyzeRequest.FromString(message)
    except DecodeError:
        return True
    return False


@scenario(
    "oversized requests",
    fault="A message of 64 MB, a message of 100 MB that gzip compresses to 100 kB, and 1 MB of metadata",
    expected="Only that call fails, with RESOURCE_EXHAUSTED; memory grows little and all other calls are answered",
)
async def oversized_requests(context: Context) -> Verdict:
    """The control sends the same kinds of calls with small contents."""
    requests: dict[str, tuple[int, dict[str, Any]]] = {
        "64 MB": (64 * 10**6, {}),
        "100 MB in gzip": (100 * 10**6, {"compression": grpc.Compression.Gzip}),
        "1 MB of metadata": (4, {"metadata": [("x-large", "a" * 10**6)]}),
    }
    codes: dict[str, str] = {}
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
            before_mb = max_mb = rss_mb(server.process.pid)
            for name, (size, options) in requests.items():
                codes[name], peak_mb = await _call(server, size, options)
                max_mb = max(max_mb, peak_mb)
                await traffic.flow_until(50)
        small = {
            "in gzip": await _call(server, 100, {"compression": grpc.Compression.Gzip}),
            "with metadata": await _call(server, 100, {"metadata": [("x-small", "a")]}),
        }
    return Verdict(
        observed=f"{', '.join(f'{name}: {code}' for name, code in codes.items())}; memory {max_mb - before_mb:+.0f} "
        f"MB at most; {traffic.failures()} of {len(traffic.requests):,} other items without a correct answer",
        passed=set(codes.values()) == {"RESOURCE_EXHAUSTED"} and not traffic.failures() and max_mb - before_mb < 100,
        control=f"small requests: {', '.join(f'{name} {code}' for name, (code, _) in small.items())}",
        control_failed={code for code, _ in small.values()} == {"OK"},
        figures={"peak_mb": max_mb - before_mb, "items": len(traffic.requests), "failed_items": traffic.failures()},
    )


async def _call(server: Server, size: int, options: dict[str, Any]) -> tuple[str, float]:
    """Sends a text of ``size`` bytes; returns the status code and the peak memory of the server in MB meanwhile."""
    message = pb2.AnalyzeRequest(items=[item_pb2.Item(text="a" * size)]).SerializeToString()
    peak_mb = 0.0
    async with grpc.aio.insecure_channel(server.target, [*_UNBOUNDED, ("grpc.max_metadata_size", 2**24)]) as channel:
        send: Any = channel.unary_unary(_ANALYZE)
        call = send(message, timeout=60, **options)
        while not call.done():
            peak_mb = max(peak_mb, rss_mb(server.process.pid))
            await asyncio.sleep(0.005)
        return (await call.code()).name, peak_mb


@scenario(
    "fuzzed messages",
    fault="Messages generated by Hypothesis: random bytes, valid messages with changed bytes, and unusual valid "
    "messages",
    expected="Every message is answered, never with an internal error; the server keeps working",
)
async def fuzzed_messages(context: Context) -> Verdict:
    """Uses unary calls, so that each message has its own status. The control calls an unknown method."""
    examples = context.scaled(3_000, 200)
    codes: Counter[str] = Counter()
    faults = 0
    async with run_server(context.bundle, context.work_dir) as server:
        with grpc.insecure_channel(server.target) as channel:
            send: Any = channel.unary_unary(_ANALYZE)

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(_messages())
            def try_message(message: bytes) -> None:
                nonlocal faults
                try:
                    response = pb2.AnalyzeResponse.FromString(send(message, timeout=30))
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
                    faults += error.code() in _SERVER_FAULTS
                    return
                codes["OK"] += 1
                faults += any(one.error.code == grpc.StatusCode.INTERNAL.value[0] for one in response.answers)

            await asyncio.to_thread(try_message)
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
    refused = await _unknown_method(context)
    return Verdict(
        observed=f"{codes.total():,} messages: "
        f"{', '.join(f'{code} {number:,}' for code, number in codes.most_common())}; {faults} internal errors; "
        f"{traffic.failures()} of {len(traffic.requests)} later items without a correct answer",
        passed=not faults and codes.total() >= examples / 2 and not traffic.failures(),
        control=f"a call of an unknown method is counted as {refused}",
        control_failed=refused == "UNIMPLEMENTED",
        figures={"messages": codes.total(), "internal_errors": faults},
    )


def _messages() -> st.SearchStrategy[bytes]:
    item = st.builds(item_pb2.Item, item_id=st.text(max_size=300), text=st.text(max_size=2_000))
    valid = st.builds(
        lambda items, tasks, truncation, encoding, dimensions: pb2.AnalyzeRequest(
            items=items,
            tasks=tasks,
            options=item_pb2.ItemOptions(truncation=truncation),
            embedding_options=item_pb2.EmbeddingOptions(encoding=encoding, dimensions=dimensions),
        ).SerializeToString(),
        st.lists(item, max_size=20),
        st.lists(st.integers(0, 9), max_size=5),
        st.integers(0, 5),
        st.integers(0, 6),
        st.integers(0, 1_000),
    )

    def corrupt(message: bytes, position: int, byte: int, length: int) -> bytes:
        changed = bytearray(message or b"\x00")
        changed[position % len(changed)] = byte
        return bytes(changed[: max(1, length % (2 * len(changed)))])

    numbers = st.integers(0, 10**6)
    corrupted = st.builds(corrupt, valid, numbers, st.integers(0, 255), numbers)
    return st.one_of(valid, corrupted, st.binary(max_size=2_000))


async def _unknown_method(context: Context) -> str:
    """Returns the status code of a call of an unknown method."""
    async with (
        run_server(context.bundle, context.work_dir) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        try:
            send: Any = channel.unary_unary("/polyhead.v1.InferenceService/Nothing")
            await send(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"

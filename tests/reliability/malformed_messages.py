"""Messages that are no messages, or too much of one; written as raw bytes."""

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

from .processes import Server, rss_mb, run_server, run_server_with_client
from .scenario import Context, Verdict, scenario
from .traffic import Traffic

_STREAM = "/polyhead.v1.InferenceService/StreamAnalyze"
_ANALYZE = "/polyhead.v1.InferenceService/Analyze"
_UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# What a client may be answered with as a whole: its own mistake, never a fault of the server's.
_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def rubbish(good: bytes) -> Mapping[str, bytes]:
    """Messages that cannot be read, by what is wrong with them."""
    rng = random.Random(0)
    return {
        "a text that is not UTF-8": pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="bad", text="????")])
        .SerializeToString()
        .replace(b"????", b"\xff\xfe\xc3("),
        "an id that is not UTF-8": pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="????", text="text")])
        .SerializeToString()
        .replace(b"????", b"\xff\xfe\xc3("),
        "a torn message": good[: len(good) // 2],
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
    "rubbish in a stream",
    fault="messages that cannot be read, between good ones of the same stream",
    expected="each is answered in the stream with an error, every good one rightly, and the stream goes on",
)
async def rubbish_in_a_stream(context: Context) -> Verdict:
    """The control: gRPC's own reading, which ends at the first of them."""
    text = context.texts[0]
    good = pb2.StreamAnalyzeRequest(items=[item_pb2.Item(item_id="good", text=text)]).SerializeToString()
    counts: Counter[str] = Counter()
    answered = 0
    async with (
        run_server(context.bundle, context.work_dir) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        call: Any = channel.stream_stream(_STREAM)()
        for bad in rubbish(good).values():
            for message in (good, bad, good):
                await call.write(message)
                (answer,) = answers_of(pb2.StreamAnalyzeResponse.FromString(await call.read()))
                if message == bad:
                    answered += answer.error is not None
                elif answer.result is not None:
                    counts[context.reference_answers.judge(text, answer.result)] += 1
        await call.done_writing()
        code = await call.code()
    messages = len(rubbish(good))
    torn = sum(_does_not_parse(bad) for bad in rubbish(good).values())
    return Verdict(
        observed=f"{messages} kinds of rubbish: {answered} answered with an error; of {2 * messages} good messages between "
        f"them {counts['correct']} answered rightly; the stream ended {code.name}",
        passed=answered == messages and counts["correct"] == 2 * messages and code is grpc.StatusCode.OK,
        control=f"protobuf, on which gRPC ends the stream, refuses {torn} of them",
        control_failed=torn > 0,
        figures={"kinds": messages, "answered": answered, "correct": counts["correct"]},
    )


def _does_not_parse(message: bytes) -> bool:
    try:
        pb2.StreamAnalyzeRequest.FromString(message)
    except DecodeError:
        return True
    return False


@scenario(
    "too much at once",
    fault="a message of 64 MB, one of 100 MB that comes as 100 kB of gzip, 1 MB of metadata",
    expected="RESOURCE_EXHAUSTED for that call alone, little memory, everybody else is answered",
)
async def too_much_at_once(context: Context) -> Verdict:
    """The control: the same calls with little in them are answered."""
    tries: dict[str, tuple[int, dict[str, Any]]] = {
        "64 MB": (64 * 10**6, {}),
        "100 MB in gzip": (100 * 10**6, {"compression": grpc.Compression.Gzip}),
        "1 MB of metadata": (4, {"metadata": [("x-much", "a" * 10**6)]}),
    }
    codes: dict[str, str] = {}
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
            before = peak = rss_mb(server.process.pid)
            for name, (size, how) in tries.items():
                codes[name], high = await _call(server, size, how)
                peak = max(peak, high)
                await traffic.flow_until(50)
        small = {
            "in gzip": await _call(server, 100, {"compression": grpc.Compression.Gzip}),
            "with metadata": await _call(server, 100, {"metadata": [("x-little", "a")]}),
        }
    return Verdict(
        observed=f"{', '.join(f'{name}: {code}' for name, code in codes.items())}; {peak - before:+.0f} MB at most; "
        f"{traffic.failures()} of {len(traffic.requests):,} items beside them not answered rightly",
        passed=set(codes.values()) == {"RESOURCE_EXHAUSTED"} and not traffic.failures() and peak - before < 100,
        control=f"small ones: {', '.join(f'{name} {code}' for name, (code, _) in small.items())}",
        control_failed={code for code, _ in small.values()} == {"OK"},
        figures={"peak_mb": peak - before, "items": len(traffic.requests), "failed_items": traffic.failures()},
    )


async def _call(server: Server, size: int, how: dict[str, Any]) -> tuple[str, float]:
    """The code of a call with a text of so many bytes, and the server's highest memory meanwhile."""
    message = pb2.AnalyzeRequest(items=[item_pb2.Item(text="a" * size)]).SerializeToString()
    high = 0.0
    async with grpc.aio.insecure_channel(server.target, [*_UNBOUNDED, ("grpc.max_metadata_size", 2**24)]) as channel:
        ask: Any = channel.unary_unary(_ANALYZE)
        call = ask(message, timeout=60, **how)
        while not call.done():
            high = max(high, rss_mb(server.process.pid))
            await asyncio.sleep(0.005)
        return (await call.code()).name, high


@scenario(
    "fuzzing",
    fault="messages that Hypothesis makes: random bytes, good ones with bytes changed, and odd but valid ones",
    expected="an answer for each, never a fault of the server's; it goes on as before",
)
async def fuzzing(context: Context) -> Verdict:
    """Over unary calls, so that each message has a status of its own."""
    examples = context.scaled(3_000, 200)
    codes: Counter[str] = Counter()
    incidents = 0
    async with run_server(context.bundle, context.work_dir) as server:
        with grpc.insecure_channel(server.target) as channel:
            ask: Any = channel.unary_unary(_ANALYZE)

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(_messages())
            def send(message: bytes) -> None:
                nonlocal incidents
                try:
                    response = pb2.AnalyzeResponse.FromString(ask(message, timeout=30))
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
                    incidents += error.code() in _FAULTS
                    return
                codes["OK"] += 1
                incidents += any(one.error.code == grpc.StatusCode.INTERNAL.value[0] for one in response.answers)

            await asyncio.to_thread(send)
        traffic = Traffic(context.reference_answers, context.texts)
        async with AsyncClient(server.target) as client, traffic.flowing([client]):
            await traffic.flow_until(100)
    refused = await _unknown_method(context)
    return Verdict(
        observed=f"{codes.total():,} messages: {', '.join(f'{code} {number:,}' for code, number in codes.most_common())}; "
        f"{incidents} faults of the server's; {traffic.failures()} of {len(traffic.requests)} items after them not answered "
        "rightly",
        passed=not incidents and codes.total() >= examples / 2 and not traffic.failures(),
        control=f"a method that does not exist is seen as {refused}",
        control_failed=refused == "UNIMPLEMENTED",
        figures={"messages": codes.total(), "faults": incidents},
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

    def damage(message: bytes, context: int, byte: int, length: int) -> bytes:
        changed = bytearray(message or b"\x00")
        changed[context % len(changed)] = byte
        return bytes(changed[: max(1, length % (2 * len(changed)))])

    numbers = st.integers(0, 10**6)
    damaged = st.builds(damage, valid, numbers, st.integers(0, 255), numbers)
    return st.one_of(valid, damaged, st.binary(max_size=2_000))


async def _unknown_method(context: Context) -> str:
    """The control: a status that is no answer is seen."""
    async with (
        run_server(context.bundle, context.work_dir) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        try:
            ask: Any = channel.unary_unary("/polyhead.v1.InferenceService/Nothing")
            await ask(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"

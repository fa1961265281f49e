"""Load generator: keeps a polyhead server busy and prints throughput and latency as one line of JSON.

    python -m bench.loadgen.main HOST:PORT texts.jsonl --mode unary --items 1 --in-flight 64 --seconds 10
    python -m bench.loadgen.main HOST:PORT texts.jsonl --mode stream --rate 400 --mixed-tasks

Modes
  unary    unary calls of --items texts, by the generated stubs
  stream   messages of --items texts over one bidirectional stream, by the generated stubs
  client   the stream of polyhead_client, which takes one text at a time and batches those that wait

Closed loop (default): every answer triggers the next message, so that --in-flight texts are in flight. Latency is
per message, from sending it to its last answer; in mode client per text, from the time the client takes it. A
refused item ends the program.

Open loop (--rate): texts leave at Poisson arrivals whatever the server does. Latency counts from the scheduled send
time; refused items are counted as errors.

All connections take their texts from one sequence: the file again and again, with letters before each text so that no
two in flight are equal, or texts by Zipf's law (--zipf), which repeat themselves.

The first second is a warm-up and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import AsyncClient
from polyhead_client.core.retry import DEFAULT_MAX_ATTEMPTS

from bench.harness.arguments import make_parser
from bench.harness.texts import FORMAT_HELP, distinct_texts, read_texts, zipf_texts

from .loops import DRAIN_TIMEOUT_S, LoadStats, arrivals, closed_loop, open_loop, until

_TASKS = (item_pb2.TASK_EMBEDDING, item_pb2.TASK_CLASSIFICATION, item_pb2.TASK_SENTIMENT)
# Channels to the same target share a connection by default.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# polyhead_client limits the texts in flight; an open loop has no limit.
_UNLIMITED = 1_000_000


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help=FORMAT_HELP)
    parser.add_argument("--mode", choices=sorted(_MODES), default="unary", help="(default: unary)")
    parser.add_argument("--items", type=int, default=1, help="texts per message (default: 1)")
    parser.add_argument("--in-flight", type=int, default=64, help="closed loop: texts in flight (default: 64)")
    parser.add_argument("--connections", type=int, default=1, help="connections that share the load (default: 1)")
    parser.add_argument("--rate", type=float, help="open loop: texts per second")
    parser.add_argument("--tasks", type=int, nargs="+", default=_TASKS, help="task numbers (default: 1 2 3)")
    parser.add_argument("--mixed-tasks", action="store_true", help="request a random subset of the tasks per message")
    parser.add_argument("--zipf", type=float, metavar="S", help="exponent of Zipf's law, such as 1.1")
    parser.add_argument("--distinct", type=int, default=100_000, help="--zipf: different texts (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of arrivals, task subsets and texts (default: 0)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    arguments = parser.parse_args()
    if arguments.mode == "client":
        if arguments.mixed_tasks:
            parser.error("--mixed-tasks: a client stream requests the same tasks throughout; choose another --mode")
        if arguments.connections > 1:
            parser.error("--connections: a client stream uses one connection; choose another --mode")
        arguments.items = 1
    texts = read_texts(arguments.texts)
    stats = LoadStats(arguments.seconds, arguments.items)
    uvloop.run(generate(arguments, texts, stats))
    print(json.dumps(stats.report()))


async def generate(arguments: argparse.Namespace, texts: Sequence[str], stats: LoadStats) -> None:
    """Splits the load evenly between the connections and runs it."""
    arguments.in_flight //= arguments.connections
    arguments.rate = arguments.rate and arguments.rate / arguments.connections
    mode = _MODES[arguments.mode]
    endless = (
        zipf_texts(texts, arguments.zipf, arguments.distinct, arguments.seed)
        if arguments.zipf
        else distinct_texts(texts, arguments.seed)
    )
    await asyncio.gather(*(mode(arguments, endless, stats) for _ in range(arguments.connections)))


def requests(kind: Callable[..., Any], arguments: argparse.Namespace, texts: Iterator[str]) -> Iterator[Any]:
    """Yields requests endlessly."""
    rng, tasks = random.Random(arguments.seed), list(arguments.tasks)
    subsets = [subset for size in range(1, len(tasks) + 1) for subset in itertools.combinations(tasks, size)]
    while True:
        items = [item_pb2.Item(text=next(texts)) for _ in range(arguments.items)]
        yield kind(items=items, tasks=rng.choice(subsets) if arguments.mixed_tasks else tasks)


async def unary(arguments: argparse.Namespace, texts: Iterator[str], stats: LoadStats) -> None:
    """Generates unary calls."""
    messages = requests(pb2.AnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target, _OWN_CONNECTION) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def call() -> int:
            response = await stub.Analyze(next(messages))
            return sum(map(_is_result, response.answers))

        if arguments.rate:
            await open_loop(call, arguments.rate / arguments.items, stats, arguments.seed)
        else:
            await closed_loop(call, _messages_in_flight(arguments), stats)


async def stream(arguments: argparse.Namespace, texts: Iterator[str], stats: LoadStats) -> None:
    """Generates messages on one bidirectional stream."""
    messages = requests(pb2.StreamAnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target, _OWN_CONNECTION) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamAnalyze()
        if arguments.rate:
            dues = list(arrivals(stats, arguments.rate / arguments.items, arguments.seed))

            async def send_all() -> None:
                for due in dues:
                    await until(due)
                    await call.write(next(messages))
                await call.done_writing()

            await _record_open_loop(dues, _answered_messages(call, arguments.items), stats, send_all())
            call.cancel()
            return
        sent_at: deque[float] = deque()
        for _ in range(_messages_in_flight(arguments)):
            sent_at.append(time.perf_counter())
            await call.write(next(messages))
        async for results in _answered_messages(call, arguments.items):
            stats.add(results, sent_at.popleft())
            if stats.over:
                break
            sent_at.append(time.perf_counter())
            await call.write(next(messages))
        call.cancel()


async def client(arguments: argparse.Namespace, texts: Iterator[str], stats: LoadStats) -> None:
    """Generates texts for a stream of polyhead_client."""
    tasks: Any = [item_pb2.Task.Name(number).removeprefix("TASK_").lower() for number in arguments.tasks]
    sent_at: deque[float] = deque()

    async def immediately() -> AsyncIterator[str]:
        for text in texts:
            sent_at.append(time.perf_counter())
            yield text

    async def when_due(dues: Sequence[float]) -> AsyncIterator[str]:
        for due in dues:
            await until(due)
            yield next(texts)

    # An open loop counts refused items, which the client would retry.
    attempts = 1 if arguments.rate else DEFAULT_MAX_ATTEMPTS
    async with AsyncClient(arguments.target, max_attempts=attempts) as opened:
        answers: Any
        if arguments.rate:
            dues = list(arrivals(stats, arguments.rate, arguments.seed))
            answers = opened.stream(when_due(dues), tasks=tasks, max_in_flight=_UNLIMITED)
            await _record_open_loop(dues, (int(not answer.error) async for answer in answers), stats)
            return
        answers = opened.stream(immediately(), tasks=tasks, max_in_flight=arguments.in_flight)
        async for answer in answers:
            stats.add(int(not answer.error), sent_at.popleft())
            if stats.over:
                break
        await answers.aclose()


async def _record_open_loop(
    dues: Sequence[float],
    answers: AsyncIterator[int],
    stats: LoadStats,
    sending: Coroutine[Any, Any, None] | None = None,
) -> None:
    """Records one answer per scheduled message of a stream; messages without an answer count as errors."""
    left = deque(dues)

    async def receive() -> None:
        async for results in answers:
            stats.add_scheduled(results, left.popleft())

    tasks = [asyncio.ensure_future(one) for one in (receive(), sending) if one]
    timeout_s = stats.ends - time.perf_counter() + DRAIN_TIMEOUT_S
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for due in left:
        stats.add_scheduled(0, due)


async def _answered_messages(call: Any, items: int) -> AsyncIterator[int]:
    """Yields the number of results of each message of a stream once all of its items are answered."""
    left, results = items, 0
    async for response in call:
        for answer in response.answers:
            left, results = left - 1, results + _is_result(answer)
            if not left:
                yield results
                left, results = items, 0


_MODES = {"unary": unary, "stream": stream, "client": client}


def _messages_in_flight(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.in_flight) // int(arguments.items))


def _is_result(answer: Any) -> bool:
    return bool(answer.WhichOneof("outcome") == "result")


if __name__ == "__main__":
    main()

"""A client that keeps a server busy, in a process of its own, and says what came of it as one line of JSON.

    python bench/loadgen/main.py HOST:PORT texts.jsonl --way unary --items 1 --in-flight 64 --seconds 10
    python bench/loadgen/main.py HOST:PORT texts.jsonl --way stream --rate 400 --mix

Ways: ``unary``: calls of ``--items`` texts; ``stream``: messages of as many over one bidirectional stream, both by the
stubs alone; ``client``: the shipped client's stream, one text at a time, which gathers what waits.

Closed loop, the default: a message that is answered makes room for the next one, so that ``--in-flight`` texts are on
their way. Latencies are of messages, from their sending to their last answer; with ``client`` of texts, from their
being taken in. A refused item ends the program.

Open loop, with ``--rate``: so many texts a second leave at Poisson arrivals, whatever is in flight. Latencies count
from the moment at which a message was due, also where its answer comes after the measured time; refused items are
counted. ``items_per_s`` is what was answered, ``due_per_s`` what was to be sent. The first second does not count.
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

from bench.harness.texts import read

from .loops import DRAIN_S, LoadStats, arrivals, closed, open_, until

_TASKS = (item_pb2.TASK_EMBEDDING, item_pb2.TASK_CLASSIFICATION, item_pb2.TASK_SENTIMENT)
# Channels to one target share a connection unless they are told not to.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# The shipped client bounds what is in flight; an open loop has no bound.
_UNBOUNDED = 1_000_000


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help="JSON lines with a field `text`, or a text a line; .gz or not")
    parser.add_argument("--way", choices=sorted(_WAYS), default="unary")
    parser.add_argument("--items", type=int, default=1, help="texts in a message (default: 1)")
    parser.add_argument("--in-flight", type=int, default=64, help="closed loop: texts on their way (default: 64)")
    parser.add_argument("--connections", type=int, default=1, help="connections that share the load (default: 1)")
    parser.add_argument("--rate", type=float, help="open loop: texts a second")
    parser.add_argument("--tasks", type=int, nargs="+", default=_TASKS, help="numbers of the tasks (default: 1 2 3)")
    parser.add_argument("--mix", action="store_true", help="each message asks for a random part of the tasks")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and of the mix (default: 0)")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.way == "client":
        if arguments.mix:
            parser.error("--mix: a stream of the shipped client asks for the same tasks throughout; take another --way")
        if arguments.connections > 1:
            parser.error("--connections: a stream of the shipped client stays on one; take another --way")
        arguments.items = 1
    texts = [row["text"] for row in read(arguments.texts)]
    tally = LoadStats(arguments.seconds, arguments.items)
    uvloop.run(load(arguments, texts, tally))
    print(json.dumps(tally.report()))


async def load(arguments: argparse.Namespace, texts: Sequence[str], tally: LoadStats) -> None:
    """Puts its part of the load on each connection."""
    arguments.in_flight //= arguments.connections
    arguments.rate = arguments.rate and arguments.rate / arguments.connections
    way = _WAYS[arguments.way]
    await asyncio.gather(*(way(arguments, texts, tally) for _ in range(arguments.connections)))


def messages(kind: Callable[..., Any], arguments: argparse.Namespace, texts: Sequence[str]) -> Iterator[Any]:
    """Requests without end, over the texts again and again."""
    endless = itertools.cycle(texts)
    rng, tasks = random.Random(arguments.seed), list(arguments.tasks)
    parts = [part for size in range(1, len(tasks) + 1) for part in itertools.combinations(tasks, size)]
    while True:
        items = [item_pb2.Item(text=next(endless)) for _ in range(arguments.items)]
        yield kind(items=items, tasks=rng.choice(parts) if arguments.mix else tasks)


async def unary(arguments: argparse.Namespace, texts: Sequence[str], tally: LoadStats) -> None:
    """Calls, as many at once as there may be."""
    requests = messages(pb2.AnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target, _OWN_CONNECTION) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def call() -> int:
            response = await stub.Analyze(next(requests))
            return sum(map(_good, response.answers))

        if arguments.rate:
            await open_(call, arguments.rate / arguments.items, tally, arguments.seed)
        else:
            await closed(call, _messages_in_flight(arguments), tally)


async def stream(arguments: argparse.Namespace, texts: Sequence[str], tally: LoadStats) -> None:
    """Messages over one stream."""
    requests = messages(pb2.StreamAnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target, _OWN_CONNECTION) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamAnalyze()
        if arguments.rate:
            dues = list(arrivals(tally, arguments.rate / arguments.items, arguments.seed))

            async def send_all() -> None:
                for due in dues:
                    await until(due)
                    await call.write(next(requests))
                await call.done_writing()

            await _settle(dues, _wholes(call, arguments.items), tally, send_all())
            call.cancel()
            return
        sent: deque[float] = deque()
        for _ in range(_messages_in_flight(arguments)):
            sent.append(time.perf_counter())
            await call.write(next(requests))
        async for good in _wholes(call, arguments.items):
            tally.add(good, sent.popleft())
            if tally.over:
                break
            sent.append(time.perf_counter())
            await call.write(next(requests))
        call.cancel()


async def client(arguments: argparse.Namespace, texts: Sequence[str], tally: LoadStats) -> None:
    """The shipped client's stream."""
    endless = itertools.cycle(texts)
    tasks: Any = [item_pb2.Task.Name(number).removeprefix("TASK_").lower() for number in arguments.tasks]
    sent: deque[float] = deque()

    async def at_once() -> AsyncIterator[str]:
        for text in endless:
            sent.append(time.perf_counter())
            yield text

    async def when_due(dues: Sequence[float]) -> AsyncIterator[str]:
        for due in dues:
            await until(due)
            yield next(endless)

    # An open loop counts what is refused, which the client would ask for again.
    attempts = 1 if arguments.rate else DEFAULT_MAX_ATTEMPTS
    async with AsyncClient(arguments.target, max_attempts=attempts) as opened:
        answers: Any
        if arguments.rate:
            dues = list(arrivals(tally, arguments.rate, arguments.seed))
            answers = opened.stream(when_due(dues), tasks=tasks, max_in_flight=_UNBOUNDED)
            await _settle(dues, (int(not answer.error) async for answer in answers), tally)
            return
        answers = opened.stream(at_once(), tasks=tasks, max_in_flight=arguments.in_flight)
        async for answer in answers:
            tally.add(int(not answer.error), sent.popleft())
            if tally.over:
                break
        await answers.aclose()


async def _settle(
    dues: Sequence[float], goods: AsyncIterator[int], tally: LoadStats, sending: Coroutine[Any, Any, None] | None = None
) -> None:
    """Takes in an answer of an open loop's stream for each due message; those that have none at the end are errors."""
    left = deque(dues)

    async def receive() -> None:
        async for good in goods:
            tally.add_due(good, left.popleft())

    tasks = [asyncio.ensure_future(one) for one in (receive(), sending) if one]
    await asyncio.wait(tasks, timeout=tally.ends - time.perf_counter() + DRAIN_S, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for due in left:
        tally.add_due(0, due)


async def _wholes(call: Any, items: int) -> AsyncIterator[int]:
    """For each message of a stream, once all of its items are answered, how many of them were not refused."""
    left, good = items, 0
    async for response in call:
        for answer in response.answers:
            left, good = left - 1, good + _good(answer)
            if not left:
                yield good
                left, good = items, 0


_WAYS = {"unary": unary, "stream": stream, "client": client}


def _messages_in_flight(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.in_flight) // int(arguments.items))


def _good(answer: Any) -> bool:
    return bool(answer.WhichOneof("outcome") == "result")


if __name__ == "__main__":
    main()

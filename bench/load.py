"""A client that keeps a server busy, in a process of its own, and says what came of it as one line of JSON.

    python bench/load.py HOST:PORT texts.jsonl --way unary --items 1 --in-flight 64 --seconds 10

Ways: ``unary``: calls of ``--items`` texts; ``stream``: messages of as many over one bidirectional stream, both by the
stubs alone; ``client``: the shipped client's stream, one text at a time, which gathers what waits. Closed loop: a
message that is answered makes room for the next one, so that ``--in-flight`` texts are on their way. Latencies are of
messages, from their sending to their last answer; with ``client`` of texts, from their being taken in. The first second
does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from agreement import read
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import AsyncClient

_WARM_UP_S = 1.0
_TASKS = (item_pb2.TASK_EMBEDDING, item_pb2.TASK_CLASSIFICATION, item_pb2.TASK_SENTIMENT)


class Tally:
    """What was answered within the measured time."""

    def __init__(self, seconds: float) -> None:
        self.begins = time.perf_counter() + _WARM_UP_S
        self.ends = self.begins + seconds
        self.items = 0
        self.latencies: list[float] = []
        self.cpu_at_start: float | None = None

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.ends

    def add(self, items: int, sent: float) -> None:
        """Takes an answered message in."""
        now = time.perf_counter()
        if now < self.begins:
            return
        if self.cpu_at_start is None:
            self.cpu_at_start, self.begins = time.process_time(), now
            return
        self.items += items
        self.latencies.append(now - sent)

    def report(self) -> dict[str, float]:
        """Rate, latencies and the client's own CPU seconds a second."""
        wall = time.perf_counter() - self.begins
        hundredths = statistics.quantiles(self.latencies, n=100)
        return {
            "items_per_s": self.items / wall,
            "p50_ms": 1000 * hundredths[49],
            "p99_ms": 1000 * hundredths[98],
            "client_cpu": (time.process_time() - (self.cpu_at_start or 0.0)) / wall,
        }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help="JSON lines with a field `text`, or a text a line; .gz or not")
    parser.add_argument("--way", choices=sorted(_WAYS), default="unary")
    parser.add_argument("--items", type=int, default=1, help="texts in a message (default: 1)")
    parser.add_argument("--in-flight", type=int, default=64, help="texts on their way (default: 64)")
    parser.add_argument("--tasks", type=int, nargs="+", default=_TASKS, help="numbers of the tasks (default: 1 2 3)")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    texts = [row["text"] for row in read(arguments.texts)]
    tally = Tally(arguments.seconds)
    uvloop.run(_WAYS[arguments.way](arguments, texts, tally))
    print(json.dumps(tally.report()))


def messages(kind: Callable[..., Any], arguments: argparse.Namespace, texts: Sequence[str]) -> Iterator[Any]:
    """Requests without end, over the texts again and again."""
    endless = itertools.cycle(texts)
    while True:
        items = [item_pb2.Item(text=next(endless)) for _ in range(arguments.items)]
        yield kind(items=items, tasks=arguments.tasks)


async def unary(arguments: argparse.Namespace, texts: Sequence[str], tally: Tally) -> None:
    """Calls, as many at once as there may be."""
    requests = messages(pb2.AnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def call() -> None:
            while not tally.over:
                request, sent = next(requests), time.perf_counter()
                response = await stub.Analyze(request)
                tally.add(_answered(response), sent)

        await asyncio.gather(*(call() for _ in range(_messages_in_flight(arguments))))


async def stream(arguments: argparse.Namespace, texts: Sequence[str], tally: Tally) -> None:
    """Messages over one stream."""
    requests = messages(pb2.StreamAnalyzeRequest, arguments, texts)
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamAnalyze()
        sent: deque[float] = deque()

        async def send() -> None:
            request = next(requests)
            sent.append(time.perf_counter())
            await call.write(request)

        for _ in range(_messages_in_flight(arguments)):
            await send()
        left = arguments.items
        while not tally.over:
            answered = _answered(await call.read())
            while answered >= left:
                answered, left = answered - left, arguments.items
                tally.add(arguments.items, sent.popleft())
                await send()
            left -= answered
        call.cancel()


async def client(arguments: argparse.Namespace, texts: Sequence[str], tally: Tally) -> None:
    """The shipped client's stream."""
    sent: deque[float] = deque()

    async def endless() -> AsyncIterator[str]:
        for text in itertools.cycle(texts):
            sent.append(time.perf_counter())
            yield text

    async with AsyncClient(arguments.target) as opened:
        answers: Any = opened.stream(endless(), max_in_flight=arguments.in_flight)
        async for answer in answers:
            answer.unwrap()
            tally.add(1, sent.popleft())
            if tally.over:
                break
        await answers.aclose()


_WAYS = {"unary": unary, "stream": stream, "client": client}


def _messages_in_flight(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.in_flight) // int(arguments.items))


def _answered(response: Any) -> int:
    if any(answer.WhichOneof("outcome") != "result" for answer in response.answers):
        raise SystemExit(f"an item was refused: {response}")
    return len(response.answers)


if __name__ == "__main__":
    main()

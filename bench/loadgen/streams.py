"""A client with many streams, each with one text on its way, in a process of its own; one line of JSON at the end.

    python bench/loadgen/streams.py HOST:PORT texts.jsonl --streams 256 --seconds 10

Closed loops: each of ``--streams`` bidirectional streams, all over one connection, sends its next text when the last
one was answered. Besides what ``bench/loadgen/main.py`` says: ``least`` and ``most``, the fewest and the most texts that any
stream was answered, divided by the mean over all of them. Time runs from when every stream has had its first answer,
and the first second after that does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio
import uvloop
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.harness.texts import read

from .loops import LoadStats


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help="JSON lines with a field `text`, or a text a line; .gz or not")
    parser.add_argument("--streams", type=int, default=64, help="streams at once (default: 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    arguments = parser.parse_args()
    texts = [row["text"] for row in read(arguments.texts)]
    print(json.dumps(uvloop.run(measure(arguments, texts))))


async def measure(arguments: argparse.Namespace, texts: Sequence[str]) -> dict[str, float]:
    """Keeps all streams busy until the time is up."""
    counts = [0] * arguments.streams
    endless = itertools.cycle(texts)
    # Made when the last stream has had its first answer.
    tally: LoadStats | None = None
    ready = asyncio.Barrier(arguments.streams)
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def one(number: int) -> None:
            nonlocal tally
            call = stub.StreamAnalyze()
            await ask(call, next(endless))
            await ready.wait()
            tally = tally or LoadStats(arguments.seconds)
            while not tally.over:
                sent = perf_counter()
                tally.add(await ask(call, next(endless)), sent)
                counts[number] += tally.begins <= perf_counter() < tally.ends
            call.cancel()

        await asyncio.gather(*(one(number) for number in range(arguments.streams)))
    if tally is None or not any(counts):
        raise SystemExit("nothing was answered within the time: give more --seconds")
    mean = sum(counts) / arguments.streams
    return {**tally.report(), "least": min(counts) / mean, "most": max(counts) / mean}


async def ask(call: Any, text: str) -> int:
    """Sends one text and waits for its answer; 1 when it was answered as it should be."""
    await call.write(pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)]))
    response = await call.read()
    if response is grpc.aio.EOF:
        raise SystemExit(f"the stream ended: {await call.code()}")
    return int(response.answers[0].WhichOneof("outcome") == "result")


if __name__ == "__main__":
    main()

"""Load generator with many streams of one text each; prints throughput, latency and fairness as one line of JSON.

    python -m bench.loadgen.streams HOST:PORT texts.jsonl --streams 256 --seconds 10

Each of the --streams bidirectional streams, all over one connection, sends its next text when the previous one was
answered. The texts are those of bench.loadgen.main. Besides its figures, this one prints `min_over_mean` and
`max_over_mean`: the fewest and the most answers of any stream, divided by the mean over all streams. The clock starts
once every stream has had its first answer; the first second after that is a warm-up and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio
import uvloop
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.harness.arguments import make_parser
from bench.harness.texts import FORMAT_HELP, distinct_texts, read_texts

from .loops import LoadStats


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help=FORMAT_HELP)
    parser.add_argument("--streams", type=int, default=64, help="concurrent streams (default: 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(measure(arguments, read_texts(arguments.texts)))))


async def measure(arguments: argparse.Namespace, texts: Sequence[str]) -> dict[str, float]:
    """Keeps all streams busy until the measured time ends; returns the figures."""
    counts = [0] * arguments.streams
    endless = distinct_texts(texts)
    # Created when the last stream has had its first answer.
    stats: LoadStats | None = None
    ready = asyncio.Barrier(arguments.streams)
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def run_stream(number: int) -> None:
            nonlocal stats
            call = stub.StreamAnalyze()
            await send_text(call, next(endless))
            await ready.wait()
            stats = stats or LoadStats(arguments.seconds)
            while not stats.over:
                sent_at = perf_counter()
                stats.add(await send_text(call, next(endless)), sent_at)
                counts[number] += stats.begins <= perf_counter() < stats.ends
            call.cancel()

        await asyncio.gather(*(run_stream(number) for number in range(arguments.streams)))
    if stats is None or not any(counts):
        raise SystemExit("no answer came within the measured time: increase --seconds")
    mean = sum(counts) / arguments.streams
    return {**stats.report(), "min_over_mean": min(counts) / mean, "max_over_mean": max(counts) / mean}


async def send_text(call: Any, text: str) -> int:
    """Sends one text and waits for its answer; returns 1 for a result and 0 for an error."""
    await call.write(pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)]))
    response = await call.read()
    if response is grpc.aio.EOF:
        raise SystemExit(f"the stream ended: {await call.code()}")
    return int(response.answers[0].WhichOneof("outcome") == "result")


if __name__ == "__main__":
    main()

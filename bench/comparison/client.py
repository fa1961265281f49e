"""Command line of the clients of all compared servers. Requires uvloop, and the repository root on PYTHONPATH.

    python -m bench.comparison.http_client 127.0.0.1:8000/inference texts.jsonl --in-flight 64
    python -m bench.comparison.http_client 127.0.0.1:8000/inference texts.jsonl --rate 300
    python -m bench.comparison.http_client 127.0.0.1:8000/inference texts.jsonl --answers 20

Each client module implements one request and passes it to main. The loads are those of bench/loadgen/loops.py with one
text per message, and no two texts in flight are equal. The figures are printed as one line of JSON. --answers waits
until the server is ready and prints its answers to the first texts instead, with embeddings in base64.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench.harness.arguments import make_parser
from bench.harness.texts import FORMAT_HELP, distinct_texts, read_texts
from bench.loadgen.loops import LoadStats, closed_loop, open_loop

_START_TIMEOUT_S = 120.0
_RETRY_INTERVAL_S = 0.5


class Answer(NamedTuple):
    """A server's answer to one text; some protocols answer with the embedding only."""

    embedding: bytes  # float32, little-endian
    probabilities: list[float] | None = None
    sentiment: float | None = None


# Sends one text and waits for its answer.
Request = Callable[[str], Awaitable[Answer]]
# Opens a connection to the target.
Connect = Callable[[str], AbstractAsyncContextManager[Request]]


def main(connect: Connect) -> None:
    """Runs the command line of a client."""
    parser = make_parser(__doc__)
    parser.add_argument("target", metavar="HOST:PORT[/PATH]")
    parser.add_argument("texts", type=Path, help=FORMAT_HELP)
    parser.add_argument("--in-flight", type=int, default=64, help="closed loop: texts in flight (default: 64)")
    parser.add_argument("--rate", type=float, help="open loop: texts per second at Poisson arrivals")
    parser.add_argument("--seed", type=int, default=0, help="seed of arrivals and texts (default: 0)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    parser.add_argument("--answers", type=int, metavar="N", help="print the answers to the first N texts instead")
    arguments = parser.parse_args()
    texts = read_texts(arguments.texts)
    work = _answers(connect, arguments, texts) if arguments.answers else _load(connect, arguments, texts)
    print(json.dumps(uvloop.run(work)))


async def _load(connect: Connect, arguments: argparse.Namespace, texts: list[str]) -> dict[str, float]:
    endless = distinct_texts(texts, arguments.seed)
    async with connect(arguments.target) as request:

        async def call() -> int:
            await request(next(endless))
            return 1

        stats = LoadStats(arguments.seconds)
        if arguments.rate:
            await open_loop(call, arguments.rate, stats, arguments.seed)
        else:
            await closed_loop(call, arguments.in_flight, stats)
    return stats.report()


async def _answers(
    connect: Connect, arguments: argparse.Namespace, texts: list[str]
) -> list[tuple[str, list[float] | None, float | None]]:
    async with connect(arguments.target) as request:
        await _wait_until_ready(request, texts[0])
        answers = [await request(text) for text in texts[: arguments.answers]]
    return [(base64.b64encode(one.embedding).decode(), one.probabilities, one.sentiment) for one in answers]


async def _wait_until_ready(request: Request, text: str) -> None:
    ends = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            async with asyncio.timeout(10):
                await request(text)
        except Exception:  # a server that is starting fails in its own way
            if time.monotonic() > ends:
                raise
            await asyncio.sleep(_RETRY_INTERVAL_S)
        else:
            return

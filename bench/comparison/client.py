"""What the clients of all rivals have in common; needs uvloop, and bench/ on PYTHONPATH.

    build/rivals/mosec/bin/python bench/comparison/servers/mosec/client.py 127.0.0.1:8000 texts.jsonl --in-flight 64
    build/rivals/mosec/bin/python bench/comparison/servers/mosec/client.py 127.0.0.1:8000 texts.jsonl --rate 300
    build/rivals/mosec/bin/python bench/comparison/servers/mosec/client.py 127.0.0.1:8000 texts.jsonl --answers 20

A client module says how one text is asked and hands that to ``main``. The loads are those of ``loops.py``, one text a
message; the result is one line of JSON. ``--answers`` waits until the server answers, and prints what it said about the
first texts, embeddings in base64.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench.harness.texts import read
from bench.loadgen.loops import LoadStats, closed, open_

_START_S = 120.0


class Answer(NamedTuple):
    """What a server says about a text."""

    embedding: bytes  # float32, little-endian
    probabilities: list[float]
    sentiment: float


Ask = Callable[[str], Awaitable[Answer]]
# Opens a connection to HOST:PORT.
Connect = Callable[[str], AbstractAsyncContextManager[Ask]]


def main(connect: Connect) -> None:
    """Runs the command line of a client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help="JSON lines with a field `text`, or a text a line; .gz or not")
    parser.add_argument("--in-flight", type=int, default=64, help="closed loop: texts on their way (default: 64)")
    parser.add_argument("--rate", type=float, help="open loop: texts a second at Poisson arrivals")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (default: 0)")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--answers", type=int, metavar="N", help="print what is said about the first N texts")
    arguments = parser.parse_args()
    texts = [row["text"] for row in read(arguments.texts)]
    work = _answers(connect, arguments, texts) if arguments.answers else _load(connect, arguments, texts)
    print(json.dumps(uvloop.run(work)))


async def _load(connect: Connect, arguments: argparse.Namespace, texts: list[str]) -> dict[str, float]:
    endless = itertools.cycle(texts)
    async with connect(arguments.target) as ask:

        async def call() -> int:
            await ask(next(endless))
            return 1

        tally = LoadStats(arguments.seconds)
        if arguments.rate:
            await open_(call, arguments.rate, tally, arguments.seed)
        else:
            await closed(call, arguments.in_flight, tally)
    return tally.report()


async def _answers(
    connect: Connect, arguments: argparse.Namespace, texts: list[str]
) -> list[tuple[str, list[float], float]]:
    async with connect(arguments.target) as ask:
        await _wait(ask, texts[0])
        answers = [await ask(text) for text in texts[: arguments.answers]]
    return [(base64.b64encode(one.embedding).decode(), one.probabilities, one.sentiment) for one in answers]


async def _wait(ask: Ask, text: str) -> None:
    ends = time.monotonic() + _START_S
    while True:
        try:
            async with asyncio.timeout(10):
                await ask(text)
        except Exception:  # whatever a server that is starting makes of it
            if time.monotonic() > ends:
                raise
            await asyncio.sleep(0.5)
        else:
            return

"""Load generator for HTTP: keeps POST /v1/analyze busy and prints throughput and latency as one line of JSON.

    python -m bench.loadgen.http HOST:PORT texts.jsonl --items 1 --in-flight 64 --seconds 10

Closed loop: each of --in-flight / --items connections sends its next call when the last one was answered. The texts are
those of bench.loadgen.main. The first second is a warm-up and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop

from bench.harness.arguments import make_parser
from bench.harness.texts import FORMAT_HELP, distinct_texts, read_texts

from .loops import LoadStats


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help=FORMAT_HELP)
    parser.add_argument("--items", type=int, default=1, help="texts per call (default: 1)")
    parser.add_argument("--in-flight", type=int, default=64, help="texts in flight (default: 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    arguments = parser.parse_args()
    stats = LoadStats(arguments.seconds, arguments.items)
    uvloop.run(generate(arguments, distinct_texts(read_texts(arguments.texts)), stats))
    print(json.dumps(stats.report()))


async def generate(arguments: argparse.Namespace, texts: Iterator[str], stats: LoadStats) -> None:
    """Runs the connections until the measured time ends."""
    connections = max(1, arguments.in_flight // arguments.items)
    await asyncio.gather(*(connection(arguments, texts, stats) for _ in range(connections)))


async def connection(arguments: argparse.Namespace, texts: Iterator[str], stats: LoadStats) -> None:
    """Sends one call after the other over one connection."""
    host, _, port = arguments.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        while not stats.over:
            document = {"texts": list(itertools.islice(texts, arguments.items))}
            body = json.dumps(document).encode()
            sent_at = perf_counter()
            head = f"POST /v1/analyze HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answers = json.loads(await response_body(reader))["answers"]
            stats.add(sum("error" not in answer for answer in answers), sent_at)
    finally:
        writer.close()


async def response_body(reader: asyncio.StreamReader) -> bytes:
    """Reads a response.

    Raises:
        SystemExit: Its status is not 200.
    """
    lines: list[bytes] = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers: dict[bytes, Any] = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    body = await reader.readexactly(int(headers[b"content-length"]))
    if lines[0].split()[1] != b"200":
        raise SystemExit(f"{lines[0].decode()}: {body.decode(errors='replace')[:500]}")
    return body


if __name__ == "__main__":
    main()

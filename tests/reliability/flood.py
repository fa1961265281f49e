"""Load generator with many items per message and a deadline; runs as its own process and prints one line of JSON.

    python -m tests.reliability.flood HOST:PORT texts.jsonl --rate 40 --seconds 8
    python -m tests.reliability.flood HOST:PORT texts.jsonl --in-flight 8

With ``--rate``, an open loop: messages arrive at random (Poisson) at this rate, whatever the server does. An item is
good if its result arrives within the deadline, counted from the scheduled send time. Without ``--rate``, a closed loop
that measures the capacity. Requests are serialized in advance and sent by the stubs without the shipped client, so
that this process uses little CPU and never retries. The first second is a warm-up and does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2

from bench.harness.texts import read
from bench.loadgen.loops import arrivals, until

_METHOD = "/polyhead.v1.InferenceService/Analyze"
_WARM_UP_S = 1.0
_REQUESTS = 5000
# Later than any deadline: an answer before then is late, and a missing answer is lost.
_MAX_WAIT_S = 10.0


class Flood:
    """Sends the load and counts the outcomes."""

    def __init__(self, arguments: argparse.Namespace, requests: Sequence[bytes], channel: grpc.aio.Channel) -> None:
        self._arguments = arguments
        self._call: Any = channel.unary_unary(_METHOD, response_deserializer=pb2.AnalyzeResponse.FromString)
        self._requests = itertools.cycle(requests)
        self.starts = time.perf_counter() + _WARM_UP_S
        self.ends = self.starts + arguments.seconds
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.max_send_delay_s = 0.0

    @property
    def over(self) -> bool:
        """Whether the measured time has ended."""
        return bool(time.perf_counter() >= self.ends)

    async def open(self) -> None:
        """Sends messages at random (Poisson) arrival times."""
        tasks = set()
        for due in arrivals(self, self._arguments.rate, seed=0):  # type: ignore[arg-type]
            await until(due)
            self.max_send_delay_s = max(self.max_send_delay_s, time.perf_counter() - due)
            task = asyncio.create_task(self._send(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def closed(self) -> None:
        """Sends the next message when one is answered."""

        async def caller() -> None:
            while not self.over:
                await self._send(time.perf_counter())

        await asyncio.gather(*(caller() for _ in range(self._arguments.in_flight)))

    async def _send(self, due: float) -> None:
        deadline_s = self._arguments.deadline_s
        # With a hidden deadline the server cannot know that an answer is too late.
        timeout_s = _MAX_WAIT_S if self._arguments.hide_deadline else due + deadline_s - time.perf_counter()
        outcomes: Counter[str]
        try:
            response = await self._call(next(self._requests), timeout=timeout_s)
            outcomes = Counter(
                "result" if one.WhichOneof("outcome") == "result" else str(one.error.code) for one in response.answers
            )
        except grpc.aio.AioRpcError as error:
            outcomes = Counter({str(error.code().value[0]): self._arguments.items})
        latency_s = time.perf_counter() - due
        if self.starts <= due < self.ends:
            results = outcomes.pop("result", 0)
            self.counts["good" if latency_s <= deadline_s else "late"] += results
            self.latencies += [latency_s] * bool(results)
            for code, number in outcomes.items():
                self.counts[_NAMES.get(code, "failed")] += number
            self.counts["messages"] += 1
            self.counts["refused_messages"] += not results and str(_REFUSED) in outcomes


_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_NAMES = {str(_REFUSED): "refused", str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]): "expired"}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("texts", type=Path, help="JSON lines with a field `text`")
    parser.add_argument("--items", type=int, default=16, help="texts per message (default: 16)")
    parser.add_argument("--rate", type=float, help="open loop: messages per second")
    parser.add_argument("--in-flight", type=int, default=8, help="closed loop: messages in flight (default: 8)")
    parser.add_argument("--deadline-s", type=float, default=0.5, help="deadline of a message in seconds (default: 0.5)")
    parser.add_argument("--hide-deadline", action="store_true", help="do not send the deadline to the server")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time (default: 8)")
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(flood(arguments))))


async def flood(arguments: argparse.Namespace) -> dict[str, float]:
    """Sends the load; returns rates in items per second, latencies and the CPU use of this process."""
    texts = itertools.cycle([row["text"] for row in read(arguments.texts)])
    # More than can be in flight, and different ones: equal texts share a computation.
    requests = [
        pb2.AnalyzeRequest(
            items=[item_pb2.Item(text=f"{next(texts)} {number}") for _ in range(arguments.items)]
        ).SerializeToString()
        for number in range(_REQUESTS)
    ]
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        one = Flood(arguments, requests, channel)
        cpu_s, started = time.process_time(), time.perf_counter()
        await (one.open() if arguments.rate else one.closed())
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - started
    ordered = sorted(one.latencies) or [float("nan")]
    return {
        **{f"{name}_per_s": one.counts[name] / arguments.seconds for name in ("good", "late", *_NAMES.values())},
        "failed": one.counts["failed"],
        "messages_per_s": one.counts["messages"] / arguments.seconds,
        "refused_messages_per_s": one.counts["refused_messages"] / arguments.seconds,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
        "client_cpu": cpu_s / wall_s,
        "max_send_delay_ms": 1000 * one.max_send_delay_s,
    }


if __name__ == "__main__":
    main()

"""A load of its own process and core: many items a message, deadlines, an open loop; one line of JSON at the end.

    cd bench && python -m faults.flood HOST:PORT texts.jsonl --rate 40 --seconds 8
    cd bench && python -m faults.flood HOST:PORT texts.jsonl --in-flight 8

With ``--rate``: so many messages a second at Poisson arrivals, whatever the server does; an item is good when its
result came within the deadline, counted from when its message was due. Without it: a closed loop, for the capacity.
Requests are serialized beforehand and sent by the stubs alone, so that this process costs little and tries nothing
again. The first second does not count.
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
# Later than any deadline: what still comes is late, and what does not come then is lost.
_PATIENCE_S = 10.0


class Flood:
    """The load, and what became of it."""

    def __init__(self, arguments: argparse.Namespace, requests: Sequence[bytes], channel: grpc.aio.Channel) -> None:
        self._arguments = arguments
        self._call: Any = channel.unary_unary(_METHOD, response_deserializer=pb2.AnalyzeResponse.FromString)
        self._requests = itertools.cycle(requests)
        self.begins = time.perf_counter() + _WARM_UP_S
        self.ends = self.begins + arguments.seconds
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.latest_s = 0.0

    @property
    def over(self) -> bool:
        """Whether the time is up; what ``arrivals`` asks."""
        return bool(time.perf_counter() >= self.ends)

    async def open(self) -> None:
        """Messages at Poisson arrivals."""
        tasks = set()
        for due in arrivals(self, self._arguments.rate, seed=0):  # type: ignore[arg-type]
            await until(due)
            self.latest_s = max(self.latest_s, time.perf_counter() - due)
            task = asyncio.create_task(self._send(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def closed(self) -> None:
        """A message that is answered makes room for the next."""

        async def caller() -> None:
            while not self.over:
                await self._send(time.perf_counter())

        await asyncio.gather(*(caller() for _ in range(self._arguments.in_flight)))

    async def _send(self, due: float) -> None:
        deadline_s = self._arguments.deadline_s
        # The control keeps the deadline to itself: the server cannot know when an answer is worthless.
        left_s = _PATIENCE_S if self._arguments.secret else due + deadline_s - time.perf_counter()
        outcomes: Counter[str]
        try:
            response = await self._call(next(self._requests), timeout=left_s)
            outcomes = Counter(
                "result" if one.WhichOneof("outcome") == "result" else str(one.error.code) for one in response.answers
            )
        except grpc.aio.AioRpcError as error:
            outcomes = Counter({str(error.code().value[0]): self._arguments.items})
        took = time.perf_counter() - due
        if self.begins <= due < self.ends:
            results = outcomes.pop("result", 0)
            self.counts["good" if took <= deadline_s else "late"] += results
            self.latencies += [took] * bool(results)
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
    parser.add_argument("--items", type=int, default=16, help="texts in a message (default: 16)")
    parser.add_argument("--rate", type=float, help="open loop: messages a second")
    parser.add_argument("--in-flight", type=int, default=8, help="closed loop: messages on their way (default: 8)")
    parser.add_argument("--deadline-s", type=float, default=0.5, help="(default: 0.5)")
    parser.add_argument("--secret", action="store_true", help="do not tell the server the deadline")
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(flood(arguments))))


async def flood(arguments: argparse.Namespace) -> dict[str, float]:
    """Puts the load on; returns rates in items a second, latencies, and this process's own CPU."""
    texts = itertools.cycle([row["text"] for row in read(arguments.texts)])
    requests = [
        pb2.AnalyzeRequest(items=[item_pb2.Item(text=next(texts)) for _ in range(arguments.items)]).SerializeToString()
        for _ in range(100)
    ]
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        one = Flood(arguments, requests, channel)
        cpu_s, began = time.process_time(), time.perf_counter()
        await (one.open() if arguments.rate else one.closed())
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - began
    ordered = sorted(one.latencies) or [float("nan")]
    return {
        **{f"{name}_per_s": one.counts[name] / arguments.seconds for name in ("good", "late", *_NAMES.values())},
        "failed": one.counts["failed"],
        "messages_per_s": one.counts["messages"] / arguments.seconds,
        "refused_messages_per_s": one.counts["refused_messages"] / arguments.seconds,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
        "client_cpu": cpu_s / wall_s,
        "latest_ms": 1000 * one.latest_s,
    }


if __name__ == "__main__":
    main()

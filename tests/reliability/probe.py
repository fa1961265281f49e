"""Asks a server one small thing after the other, in a process of its own, and tells what it saw when it is asked.

    cd bench && python -m faults.probe HOST:PORT --health            # how long its event loop stalls, from outside
    cd bench && python -m faults.probe HOST:PORT --text "Hello"      # what a single call costs beside others' load

Each line on its standard input is answered with a line of JSON: what was seen since the last one. Latencies are those
of plain blocking calls; of the health service they are an upper bound for the stalls of the server's event loop: they
hold the network, the scheduler and this process as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead_client import Client

# Between two questions: small beside the stalls that are looked for.
_PAUSE_S = 0.002
_DEADLINE_S = 60.0


class Probe:
    """What was seen since somebody asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies_ms: list[float] = []
        self._errors = 0

    def add(self, began: float, *, failed: bool) -> None:
        """Takes in a question that began at a second of ``time.perf_counter()`` and was answered now."""
        with self._lock:
            self._latencies_ms.append(1000 * (time.perf_counter() - began))
            self._errors += failed

    def answer(self) -> None:
        """Answers each line of standard input, until it ends."""
        for _ in sys.stdin:
            with self._lock:
                ordered, errors = sorted(self._latencies_ms) or [float("nan")], self._errors
                self._latencies_ms, self._errors = [], 0
            ranks = {f"p{rank}_ms": ordered[len(ordered) * rank // 100] for rank in (50, 99)}
            print(json.dumps({**ranks, "most_ms": ordered[-1], "n": len(ordered), "errors": errors}), flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--health", action="store_true", help="ask the health service")
    parser.add_argument("--text", help="analyze this text")
    arguments = parser.parse_args()
    probe = Probe()
    with grpc.insecure_channel(arguments.target) as channel, Client(arguments.target) as client:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        def ask() -> bool:
            if arguments.health:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
                return False
            return any(one.error for one in client.analyze([arguments.text], deadline_s=_DEADLINE_S))

        ask()
        answering = threading.Thread(target=probe.answer)
        answering.start()
        while answering.is_alive():
            began = time.perf_counter()
            probe.add(began, failed=ask())
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()

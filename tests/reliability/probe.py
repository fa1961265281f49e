"""Sends one small request after another to a server, from a separate process, and reports latencies on demand.

    python -m tests.reliability.probe HOST:PORT --health            # stalls of the event loop, seen from outside
    python -m tests.reliability.probe HOST:PORT --text "Hello"      # latency of single calls beside other load

Each line on standard input is answered with one line of JSON about the requests since the previous line. Latencies are
those of plain blocking calls. For the health service they are an upper bound on the stalls of the server's event loop,
because they include the network, the operating system's scheduler and this process.
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

# Pause between two requests, short compared with the stalls to detect.
_PAUSE_S = 0.002
_DEADLINE_S = 60.0


class Probe:
    """Latencies and errors since the last report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies_ms: list[float] = []
        self._errors = 0

    def add(self, started: float, *, failed: bool) -> None:
        """Records a request that started at a time of ``time.perf_counter()`` and has just been answered."""
        with self._lock:
            self._latencies_ms.append(1000 * (time.perf_counter() - started))
            self._errors += failed

    def report_on_demand(self) -> None:
        """Prints a report for each line of standard input until the input ends."""
        for _ in sys.stdin:
            with self._lock:
                ordered, errors = sorted(self._latencies_ms) or [float("nan")], self._errors
                self._latencies_ms, self._errors = [], 0
            ranks = {f"p{rank}_ms": ordered[len(ordered) * rank // 100] for rank in (50, 99)}
            print(json.dumps({**ranks, "max_ms": ordered[-1], "n": len(ordered), "errors": errors}), flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--health", action="store_true", help="call the health service")
    parser.add_argument("--text", help="analyze this text")
    arguments = parser.parse_args()
    probe = Probe()
    with grpc.insecure_channel(arguments.target) as channel, Client(arguments.target) as client:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        def send() -> bool:
            if arguments.health:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
                return False
            return any(one.error for one in client.analyze([arguments.text], deadline_s=_DEADLINE_S))

        send()
        reporter = threading.Thread(target=probe.report_on_demand)
        reporter.start()
        while reporter.is_alive():
            started = time.perf_counter()
            probe.add(started, failed=send())
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()

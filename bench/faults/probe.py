"""Asks a server one small thing after the other, in a process of its own; one line of JSON at the end.

    cd bench && python -m faults.probe HOST:PORT --health            # how long its event loop stalls, from outside
    cd bench && python -m faults.probe HOST:PORT --text "Hello"      # what a single call costs beside others' load

It runs until its standard input ends. Latencies are those of a plain blocking call; of the health service they are an
upper bound for the stalls of the server's event loop: they hold the network, the scheduler and this process as well.
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


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--health", action="store_true", help="ask the health service")
    parser.add_argument("--text", help="analyze this text")
    arguments = parser.parse_args()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    latencies: list[float] = []
    errors = 0
    with grpc.insecure_channel(arguments.target) as channel, Client(arguments.target) as client:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
        print("ready", flush=True)
        while not ended.wait(_PAUSE_S):
            began = time.perf_counter()
            if arguments.health:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
            else:
                errors += any(one.error for one in client.analyze([arguments.text], deadline_s=_DEADLINE_S))
            latencies.append(1000 * (time.perf_counter() - began))
    ordered = sorted(latencies) or [float("nan")]
    ranks = {f"p{rank}_ms": ordered[len(ordered) * rank // 100] for rank in (50, 99)}
    print(json.dumps({**ranks, "most_ms": ordered[-1], "n": len(ordered), "errors": errors}))


if __name__ == "__main__":
    main()

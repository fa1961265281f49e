"""CPU time of the server per text, with an engine that answers at once: what the wire, the queue and Python cost.

    python -m bench.server.front_cost --bundle build/demo/bundle --output bench/results/front_cost.json
    python -m bench.server.front_cost --bundle build/demo/bundle --only unary analyze --rounds 1 --seconds 2  # quick

Microseconds of the event loop and of the whole process, from /proc, under closed-loop load. They count CPU time, not
the time that passes, but a machine that does other work makes them larger: compare two versions side by side.

Loads
  unary      polyhead.v1 unary, one text, 64 in flight
  stream     polyhead.v1 stream, 32 texts per message, 256 in flight
  analyze    POST /v1/analyze, one text, 64 connections
  analyze32  POST /v1/analyze, 32 texts, 8 connections
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.processes import thread_cpu_s
from bench.harness.results import Figures
from bench.harness.servers import free_port, running_command
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, ROOT
from bench.loadgen.launch import command

# Load generator and its flags.
LOADS = {
    "unary": ("main", ("--mode", "unary", "--in-flight", "64")),
    "stream": ("main", ("--mode", "stream", "--items", "32", "--in-flight", "256")),
    "analyze": ("http", ("--in-flight", "64")),
    "analyze32": ("http", ("--items", "32", "--in-flight", "256")),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--only", nargs="+", choices=LOADS, default=list(LOADS), help="loads to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all loads (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in arguments.only}
    with instant_server(arguments.bundle) as (process_id, targets):
        for _ in tqdm(range(arguments.rounds), unit="round"):
            for name in arguments.only:
                found[name].append(cpu_per_text(process_id, targets, name, arguments))
    report = {
        **results.provenance(),
        "rounds": arguments.rounds,
        "loads": {name: results.spread_all(rounds) for name, rounds in found.items()},
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


@contextmanager
def instant_server(
    bundle: Path, *more: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Runs the server; yields its process id and the HOST:PORT for each load generator, once it serves."""
    grpc_target, http_target = (f"127.0.0.1:{free_port()}" for _ in range(2))
    flags = ("--listen", grpc_target, "--http-listen", http_target, "--device", "cpu", "--log-level", "warning", *more)
    command = [sys.executable, "-m", "bench.server.instant_server", str(bundle), *flags]
    with running_command(command, grpc_target, env={**os.environ, **(environment or {})}) as process:
        yield process.pid, {"main": grpc_target, "http": http_target}


def cpu_per_text(process_id: int, targets: dict[str, str], name: str, arguments: argparse.Namespace) -> Figures:
    """Returns CPU microseconds per text of the event loop and of the whole process under one load.

    All of the load counts, its warm-up included: on a machine that does other work, throughput changes from second to
    second.
    """
    program, flags = LOADS[name]
    load = command(program, targets[program], arguments.texts, arguments.seconds, flags)
    before = thread_cpu_s(process_id)
    figures = json.loads(subprocess.run(load, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)
    after = thread_cpu_s(process_id)
    us_per_text = 1e6 / figures["answered"]
    used = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    return {
        "event_loop_us": us_per_text * used[process_id],
        "process_us": us_per_text * sum(used.values()),
        "items_per_s": figures["items_per_s"],
    }


if __name__ == "__main__":
    main()

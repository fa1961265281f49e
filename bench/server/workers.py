"""Throughput with several worker processes: measured on this machine, simulated for machines with more cores.

    python -m bench.server.workers --bundle build/demo/bundle --output bench/results/workers.json
    python -m bench.server.workers --mean-tokens 100                                     # the simulation alone

The costs of the simulation are flags; bench.server.latency_breakdown measures them. The model and its limits are in
bench/server/interpreter_simulation.py. Connections are spread evenly, with 64 texts in flight per core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from polyhead_server.settings import usable_cores
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import serving
from bench.harness.texts import DEMO_TEXTS
from bench.loadgen.launch import run_loads

from .interpreter_simulation import IN_FLIGHT_PER_CORE, WORKERS, Costs, simulate

# Name of a load, and the texts per message.
MESSAGES = {"unary, 1 item": 1, "stream, 8 items": 8, "stream, 32 items": 32}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to measure; without it only the simulation runs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the measurement (default: 3)")
    parser.add_argument("--workers", type=int, nargs="+", help="worker counts to measure (default: 1, one per core)")
    parser.add_argument("--clients", type=int, default=1, help="load generators that share a load (default: 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    parser.add_argument("--message-us", type=float, default=500.0, help="Python per message (default: 500)")
    parser.add_argument("--item-us", type=float, default=160.0, help="Python per text (default: 160)")
    parser.add_argument("--batch-us", type=float, default=300.0, help="Python per batch (default: 300)")
    parser.add_argument("--compute-us", type=float, default=1000.0, help="one core per batch (default: 1000)")
    parser.add_argument("--token-us", type=float, default=95.0, help="one core per token (default: 95)")
    parser.add_argument("--mean-tokens", type=int, default=39, help="mean tokens per text (default: 39)")
    parser.add_argument("--max-batch-tokens", type=int, default=256, help="batch size limit in tokens (default: 256)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    costs = Costs(*(getattr(arguments, f"{name}_us") for name in ("message", "item", "batch", "compute", "token")))
    report: dict[str, Any] = {
        **results.provenance(),
        "rounds": arguments.rounds,
        "costs_us": vars(costs),
        "simulated_items_per_s": simulate(costs, MESSAGES, arguments.mean_tokens, arguments.max_batch_tokens),
    }
    if arguments.bundle:
        report["measured_items_per_s"] = measure(arguments)
    print(table(report["simulated_items_per_s"]))
    for load, counts in report.get("measured_items_per_s", {}).items():
        rates = ", ".join(f"{workers} workers {rate[0]:.0f} texts/s" for workers, rate in counts.items())
        print(f"measured: {load}: {rates}")
    results.write(arguments.output, report)


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Returns texts per second by load and worker count, over 8 connections, in interleaved rounds."""
    counts = arguments.workers or (1, usable_cores())
    in_flight = str(IN_FLIGHT_PER_CORE * usable_cores() // arguments.clients)
    found: dict[str, dict[str, list[float]]] = {load: {str(count): [] for count in counts} for load in MESSAGES}
    with tqdm(total=arguments.rounds * len(counts) * len(MESSAGES), unit="load") as bar:
        for _ in range(arguments.rounds):
            for count in counts:
                flags = ("--workers", str(count), "--max-batch-tokens", str(arguments.max_batch_tokens))
                with serving(arguments.bundle, *flags) as target:
                    for load, items in MESSAGES.items():
                        mode = ("--mode", load.partition(",")[0], "--items", str(items))
                        load_flags = (*mode, "--connections", "8", "--in-flight", in_flight)
                        figures = run_loads(target, DEMO_TEXTS, arguments.seconds, arguments.clients, load_flags)
                        found[load][str(count)].append(figures["items_per_s"])
                        bar.update()
    return {load: {count: results.spread(rates) for count, rates in one.items()} for load, one in found.items()}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Formats the simulation for a terminal."""
    lines = [f"{'simulated, texts/s':<20}{'cores':>6}" + "".join(f"{f'{count} workers':>12}" for count in WORKERS)]
    for load, rows in found.items():
        for cores, rates in rows.items():
            lines.append(f"{load:<20}{cores:>6}" + "".join(f"{rates.get(str(count), ''):>12}" for count in WORKERS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

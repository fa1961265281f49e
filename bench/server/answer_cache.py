"""Throughput with answer caches of several sizes, under texts that are as popular as Zipf's law says.

    python -m bench.server.answer_cache --bundle build/demo/bundle --output bench/results/answer_cache.json

A server for each size; they take turns. Each round draws other texts by the same law, and before the first round each
server answers the load for --fill seconds. cached and shared are the shares of the texts that were answered from the
cache, and with the computation of an equal text in flight.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import free_port, metric, serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP
from bench.loadgen.launch import run_load

# Name of a load in the result file, and the flags of the load generator.
LOADS: dict[str, tuple[str, ...]] = {
    "unary, 1 item, 64 in flight": ("--in-flight", "64"),
    "stream, 32 items, 256 in flight": ("--mode", "stream", "--items", "32", "--in-flight", "256"),
}
_COUNTERS = {
    "computed": "polyhead_items_total",
    "cached": "polyhead_answer_cache_hits_total",
    "shared": "polyhead_shared_items_total",
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--variant", default="int8", help="variant to serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 64, 512], help="MiB (default: 0 64 512)")
    parser.add_argument("--zipf", type=float, default=1.1, help="exponent of Zipf's law (default: 1.1)")
    parser.add_argument("--distinct", type=int, default=100_000, help="different texts (default: 100,000)")
    parser.add_argument("--fill", type=float, default=60.0, help="seconds of load before the rounds (default: 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all servers and loads (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    report = {
        **results.provenance(),
        **{name: getattr(arguments, name) for name in ("variant", "zipf", "distinct", "fill", "rounds")},
        "loads": measure(arguments),
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Starts the servers and measures every load; returns load, size, figure, [median, lowest, highest]."""
    found: dict[str, dict[str, list[Figures]]] = {load: {str(size): [] for size in arguments.sizes} for load in LOADS}
    law = ("--zipf", str(arguments.zipf), "--distinct", str(arguments.distinct))
    with contextlib.ExitStack() as stack:
        servers: dict[str, tuple[str, str]] = {}
        for size in arguments.sizes:
            metrics = f"127.0.0.1:{free_port()}"
            served = ("--device", "cpu", "--variant", arguments.variant, "--metrics-listen", metrics)
            target = stack.enter_context(serving(arguments.bundle, *served, "--answer-cache-mb", str(size)))
            servers[str(size)] = target, metrics
            if size and arguments.fill:
                stream = LOADS["stream, 32 items, 256 in flight"]
                run_load(target, arguments.texts, arguments.fill, (*stream, *law, "--seed", "0"))
        for number in tqdm(range(arguments.rounds), unit="round"):
            for offset, (load, flags) in enumerate(LOADS.items(), 1):
                for size, (target, metrics) in servers.items():
                    # Other texts in each round and load: those of the last one are in the cache.
                    seed = str(len(LOADS) * number + offset)
                    before = {name: metric(metrics, counter) for name, counter in _COUNTERS.items()}
                    figures = run_load(target, arguments.texts, arguments.seconds, (*flags, *law, "--seed", seed))
                    counts = {name: metric(metrics, counter) - before[name] for name, counter in _COUNTERS.items()}
                    total = sum(counts.values())
                    shares = {name: counts[name] / total for name in ("cached", "shared")}
                    found[load][size].append({**figures, **shares})
    return {load: {size: results.spread_all(rounds) for size, rounds in sizes.items()} for load, sizes in found.items()}


if __name__ == "__main__":
    main()

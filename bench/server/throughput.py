"""Throughput and latency of the server under closed-loop and open-loop load, relative to an upper bound.

    python -m bench.server.throughput --bundle build/demo/bundle --output bench/results/throughput-int8.json
    python -m bench.server.throughput --bundle build/demo/bundle --only unary --rounds 1 --seconds 2    # a quick look

Efficiency is throughput divided by the onnxruntime upper bound: the same graph in this process with one thread per
core, over texts that were tokenized and sorted by length beforehand, in batches of at most 512 tokens. The load
generator is a separate process on the same cores; efficiency_without_client excludes the CPU time that it used.

The upper bound is measured between any two loads and rounds are interleaved, so that noise affects all loads alike.
The file holds [median, lowest, highest] of each figure. Poisson loads send at a fraction of the rate that 64 unary
calls in flight reached in the same round. With one text in flight, overhead_ms is the median latency minus that of
onnxruntime alone. padding is padding tokens per real token, from the server's own metrics.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import free_port, metric, serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, first_turn, read_texts, with_long_texts, write_texts
from bench.harness.upper_bound import UpperBound, with_efficiency
from bench.loadgen.launch import run_load

_STREAM_OF_32 = ("--mode", "stream", "--items", "32", "--in-flight", "256")
# Name of a load in the result file, and the flags of the load generator.
LOADS: dict[str, tuple[str, ...]] = {
    "unary, 1 item, 1 in flight": ("--items", "1", "--in-flight", "1"),
    "unary, 1 item, 8 in flight": ("--items", "1", "--in-flight", "8"),
    "unary, 1 item, 64 in flight": ("--items", "1", "--in-flight", "64"),
    "unary, 1 item, 256 in flight": ("--items", "1", "--in-flight", "256"),
    "unary, 8 items, 64 in flight": ("--items", "8", "--in-flight", "64"),
    "unary, 32 items, 256 in flight": ("--items", "32", "--in-flight", "256"),
    "stream, 1 item, 64 in flight": ("--mode", "stream", "--items", "1", "--in-flight", "64"),
    "stream, 8 items, 64 in flight": ("--mode", "stream", "--items", "8", "--in-flight", "64"),
    "stream, 32 items, 256 in flight": _STREAM_OF_32,
    "stream, 32 items, mixed tasks": (*_STREAM_OF_32, "--mixed-tasks"),
    "stream, 32 items, embedding only": (*_STREAM_OF_32, "--tasks", "1"),
    "client, 64 in flight": ("--mode", "client", "--in-flight", "64"),
}
# The load whose throughput counts as the capacity, and the fractions of it that are sent as a Poisson process.
CAPACITY = "unary, 1 item, 64 in flight"
POISSON = {"Poisson 50 %, unary, 1 item": 0.5, "Poisson 80 %, unary, 1 item": 0.8}
ONE_IN_FLIGHT = "unary, 1 item, 1 in flight"
_TOKEN_METRICS = ("polyhead_tokens_total", "polyhead_padding_tokens_total")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--variant", default="int8", help="variant to serve and to compare with (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--long", action="store_true", help="concatenate four texts into every tenth one")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="only loads whose names begin with a prefix")
    add_output_flag(parser)
    arguments = parser.parse_args()
    texts = read_texts(arguments.texts)
    loads = measure(arguments, with_long_texts(texts) if arguments.long else texts)
    print(table(loads))
    settings = {"variant": arguments.variant, "rounds": arguments.rounds}
    results.write(arguments.output, {**results.provenance(), **settings, "loads": loads})


def measure(arguments: argparse.Namespace, texts: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Starts a server and measures every load; returns load, figure, [median, lowest, highest]."""
    prefixes = tuple(arguments.only or ("",))
    loads = [name for name in (*LOADS, *POISSON) if name.startswith(prefixes)]
    found: dict[str, list[Figures]] = {name: [] for name in loads}
    upper_bound = UpperBound(arguments.bundle, arguments.variant, first_turn(texts))
    metrics = f"127.0.0.1:{free_port()}"
    flags = ("--engine", "onnx", "--device", "cpu", "--variant", arguments.variant, "--metrics-listen", metrics)
    with (
        tempfile.TemporaryDirectory() as work,
        serving(arguments.bundle, *flags) as target,
        tqdm(total=arguments.rounds * len(loads), unit="load") as bar,
    ):
        path = write_texts(Path(work) / "texts.jsonl", texts)
        before = upper_bound.items_per_s(arguments.seconds)
        for _ in range(arguments.rounds):
            for name in loads:
                counted = [metric(metrics, one) for one in _TOKEN_METRICS]
                figures = run_load(target, path, arguments.seconds, _flags(name, found))
                tokens, padding = (metric(metrics, one) - was for one, was in zip(_TOKEN_METRICS, counted, strict=True))
                figures["padding"] = padding / tokens
                if name == ONE_IN_FLIGHT:
                    single_text_ms = upper_bound.single_text_ms()
                    figures |= {"single_text_ms": single_text_ms, "overhead_ms": figures["p50_ms"] - single_text_ms}
                after = upper_bound.items_per_s(arguments.seconds)
                found[name].append(with_efficiency(figures, (before + after) / 2))
                before = after
                bar.update()
    return {name: results.spread_all(rounds) for name, rounds in found.items()}


def _flags(name: str, found: dict[str, list[Figures]]) -> tuple[str, ...]:
    """Returns the flags of a load; the rate of an open loop depends on the closed loop of the same round."""
    if name in POISSON:
        return ("--items", "1", "--rate", str(POISSON[name] * found[CAPACITY][-1]["items_per_s"]))
    return LOADS[name]


def table(loads: dict[str, dict[str, Any]]) -> str:
    """Formats the figures for a terminal."""
    lines = [f"{'load':<36}{'efficiency':>20}{'without client':>16}{'texts/s':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    for name, one in loads.items():
        efficiency = "{:.2f} [{:.2f}, {:.2f}]".format(*one["efficiency"])
        rates = f"{one['efficiency_without_client'][0]:>16.2f}{one['items_per_s'][0]:>9.0f}"
        lines.append(f"{name:<36}{efficiency:>20}{rates}{one['p50_ms'][0]:>9.1f}{one['p99_ms'][0]:>9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

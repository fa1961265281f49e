"""Throughput and latency of a server with different flags, each divided by those of the first.

    python -m bench.server.flags --bundle build/demo/bundle --arm counting= --arm 'not counting=--drift-window-s 0'

A server for each arm. They run side by side and take turns under each load, in an order that changes, so that a trend
of the machine's speed meets all of them. ratio is the throughput divided by that of the first arm in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP
from bench.loadgen.launch import run_load

# Name of a load in the result file, and the flags of the load generator.
LOADS: dict[str, tuple[str, ...]] = {
    "unary, 1 item, 64 in flight": ("--in-flight", "64"),
    "stream, 32 items, 256 in flight": ("--mode", "stream", "--items", "32", "--in-flight", "256"),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument(
        "--arm",
        type=parse_arm,
        action="append",
        required=True,
        metavar="NAME=FLAGS",
        help="flags of polyhead-serve and a name for them, at least twice; the first is the reference",
    )
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all servers and loads (default: 9)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    arms = dict(arguments.arm)
    if len(arms) < 2 or len(arms) < len(arguments.arm):
        parser.error("--arm must occur at least twice, with different names")
    report = {
        **results.provenance(),
        "rounds": arguments.rounds,
        "flags": {name: shlex.join(flags) for name, flags in arms.items()},
        "loads": measure(arms, arguments),
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def parse_arm(value: str) -> tuple[str, list[str]]:
    """Returns the name and the flags of an arm.

    Raises:
        argparse.ArgumentTypeError: It has no name.
    """
    name, separator, flags = value.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=FLAGS")
    return name, shlex.split(flags)


def measure(arms: Mapping[str, Sequence[str]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the servers and measures every load; returns load, arm, figure, [median, lowest, highest]."""
    found: dict[str, dict[str, list[Figures]]] = {load: {name: [] for name in arms} for load in LOADS}
    with contextlib.ExitStack() as stack:
        targets = {
            name: stack.enter_context(serving(arguments.bundle, "--device", "cpu", *flags))
            for name, flags in arms.items()
        }
        for number in tqdm(range(arguments.rounds), unit="round"):
            names = list(arms)
            turn = number % len(names)
            for load, flags in LOADS.items():
                for name in names[turn:] + names[:turn]:
                    found[load][name].append(run_load(targets[name], arguments.texts, arguments.seconds, flags))
    return {load: {name: _spread(rounds, by_arm) for name, rounds in by_arm.items()} for load, by_arm in found.items()}


def _spread(rounds: Iterable[Figures], by_arm: Mapping[str, Iterable[Figures]]) -> dict[str, list[float]]:
    reference = next(iter(by_arm.values()))
    with_ratio = [
        {**one, "ratio": one["items_per_s"] / first["items_per_s"]}
        for one, first in zip(rounds, reference, strict=True)
    ]
    return results.spread_all(with_ratio)


if __name__ == "__main__":
    main()

"""Latency of a served model with a candidate beside it that answers 10 % or all of the texts, and without one.

    python -m bench.server.shadow --bundle build/demo/bundle --output bench/results/shadow.json
    python -m bench.server.shadow --bundle build/demo/bundle --rounds 1 --seconds 3   # quick

One server, under Poisson arrivals of 80 % of its capacity, which is measured first. The arms take turns in each round,
in an order that changes, so that a drift of the machine meets all of them, and the texts and the times of their arrival
are the same for all arms of a round. The candidate is the same bundle. p99_ratio is the latency divided by that without
a candidate in the same round. Beside the latency: how much of its share the candidate had answered by the end. Run the
load generator on other cores than the server, or compare the arms of one run only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import BIN, serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP
from bench.loadgen.launch import run_load

ALONE = "none"
SHARES = {ALONE: 0.0, "10 %": 0.1, "100 %": 1.0}
_CALL = ("--mode", "unary", "--items", "1", "--connections", "4")
_SATURATED = (*_CALL, "--in-flight", "64")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        target: HOST:PORT.
        admin: Address of its admin service.
    """

    target: str
    admin: str

    def run(self, *arguments: str) -> str:
        """Runs ``polyhead admin`` and returns its output."""
        command = [str(BIN / "polyhead"), "admin", *arguments, "--target", self.admin]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve, and the candidate")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity (default: 0.8)")
    parser.add_argument("--fronts", type=int, default=0, help="fronts of the server; 0 for one process (default: 0)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of all arms (default: 12)")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured seconds per arm and round (default: 15)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in SHARES}
    with running(arguments.bundle, arguments.fronts) as server:
        capacity = run_load(server.target, arguments.texts, arguments.seconds, _SATURATED)["items_per_s"]
        rate = arguments.load * capacity
        for number in tqdm(range(arguments.rounds), unit="round"):
            names = list(SHARES)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                found[name].append(measure(server, arguments, SHARES[name], rate, seed=number))
            alone = found[ALONE][-1]["p99_ms"]
            for rounds in found.values():
                rounds[-1]["p99_ratio"] = rounds[-1]["p99_ms"] / alone
    report = {
        **results.provenance(),
        "rounds": arguments.rounds,
        "fronts": arguments.fronts,
        "capacity_items_per_s": round(capacity, 1),
        "rate_items_per_s": round(rate, 1),
        "arms": {name: results.spread_all(rounds) for name, rounds in found.items()},
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


@contextlib.contextmanager
def running(bundle: Path, fronts: int) -> Iterator[Server]:
    """Runs a server with an admin service."""
    with tempfile.TemporaryDirectory() as folder:
        admin = f"unix:{folder}/admin"
        with serving(bundle, "--admin-listen", admin, "--device", "cpu", "--fronts", str(fronts)) as target:
            yield Server(target, admin)


def measure(server: Server, arguments: argparse.Namespace, share: float, rate: float, seed: int) -> Figures:
    """Returns the latency of the served model, and the part of its share that a candidate has answered."""
    if share:
        server.run("shadow", str(arguments.bundle), "--share", str(share))
    load = run_load(
        server.target, arguments.texts, arguments.seconds, (*_CALL, "--rate", str(rate), "--seed", str(seed))
    )
    figures = {name: load[name] for name in ("items_per_s", "p50_ms", "p99_ms")}
    if share:
        shadow: dict[str, Any] = json.loads(server.run("compare", "--json"))["shadow"]
        server.run("discard")
        figures["compared_share"] = shadow["compared"] / (share * load["answered"])
    return figures


if __name__ == "__main__":
    main()

"""How a bulk job on Ray scales: the same table with one actor and with two, each of one core.

    make build/ray/.installed
    build/ray/bin/python -m bench.bulk.ray_scaling --bundle build/demo/bundle --output bench/results/bulk_ray.json

Each job has a new Ray cluster of one node with as many cores as actors. Rounds are interleaved: one actor, two actors,
and so on. The rate is that of the parts after the first part of each actor, so that starting Ray and loading the model
are left out; the whole time of the command is given beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import BIN, free_port
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, read_texts

from .inputs import varied, write_parquet

# `ray start` protects a cluster with a token, which this mode makes other programs send.
_ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token"}
_PACKAGES = ("polyhead", "onnxruntime", "ray")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to compute with")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--count", type=int, default=40_000, help="texts of each job (default: 40000)")
    parser.add_argument("--parts", type=int, default=40, help="parts of each job (default: 40)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2], help="numbers of actors (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        table = write_parquet(Path(work) / "in.parquet", list(varied(read_texts(arguments.texts), arguments.count)))
        found = measure(arguments, table, Path(work))
    for actors, figures in found.items():
        print(f"{actors} actors: {figures}")
    settings = {name: getattr(arguments, name) for name in ("count", "parts", "rounds")}
    results.write(arguments.output, {**results.provenance(_PACKAGES), **settings, "actors": found})


def measure(arguments: argparse.Namespace, table: Path, work: Path) -> dict[str, dict[str, list[float]]]:
    """Returns the spread of each figure by the number of actors; ``speedup`` is against the first number."""
    numbers: Sequence[int] = arguments.actors
    found: dict[int, list[Figures]] = {one: [] for one in numbers}
    for number in tqdm(range(arguments.rounds), unit="round"):
        for actors in numbers:
            found[actors].append(run_job(arguments, table, work / f"out-{number}-{actors}", actors))
    for figures in found.values():
        for one, first in zip(figures, found[numbers[0]], strict=True):
            one["speedup"] = one["texts_per_s"] / first["texts_per_s"]
    return {str(actors): results.spread_all(figures) for actors, figures in found.items()}


def run_job(arguments: argparse.Namespace, table: Path, output: Path, actors: int) -> Figures:
    """Runs a job on a new cluster with so many cores."""
    part_rows = arguments.count // arguments.parts
    flags = ("--id-column", "id", "--part-rows", str(part_rows), "--engine", "ray", "--threads", "1")
    with cluster(actors) as address:
        began = time.perf_counter()
        command = [BIN / "polyhead", "bulk", table, output, "--bundle", arguments.bundle, *flags]
        subprocess.run(list(map(str, [*command, "--ray-address", address])), check=True, env=_ENVIRONMENT)
        wall_s = time.perf_counter() - began
    made_s = sorted(path.stat().st_mtime for path in output.glob("part-*"))
    rate = part_rows * (len(made_s) - actors) / (made_s[-1] - made_s[actors - 1])
    return {"texts_per_s": rate, "job_s": wall_s}


@contextlib.contextmanager
def cluster(cores: int) -> Iterator[str]:
    """Starts a Ray cluster of one node; yields its address."""
    port = str(free_port())
    quiet = ("--include-dashboard=false", "--disable-usage-stats")
    start = ["start", "--head", f"--num-cpus={cores}", f"--port={port}", "--node-ip-address=127.0.0.1", *quiet]
    subprocess.run([str(BIN / "ray"), *start], check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([str(BIN / "ray"), "stop", "--force"], check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)


if __name__ == "__main__":
    main()

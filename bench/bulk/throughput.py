"""Throughput of bulk jobs, relative to an upper bound on the same texts and cores.

    python -m bench.bulk.throughput --bundle build/demo/bundle --output bench/results/bulk.json
    python -m bench.bulk.throughput --bundle build/demo/bundle --count 4000 --rounds 2    # a quick look

A bulk job is measured from its Parquet input to its Parquet parts: reading, tokenization, computation, compression,
SHA-256 and fsync included, loading of the model not. The upper bound is onnxruntime with one thread per core on the
same texts, tokenized and sorted by length beforehand. It is measured before and after each job. Efficiency is the time
of the upper bound divided by the time of the job; cpu_efficiency is the same with CPU time, which other activity of the
machine changes less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from polyhead_bulk.annotator import Annotator
from polyhead_bulk.job import Job
from polyhead_bulk.plan import Plan
from polyhead_bulk.selection import Selection
from polyhead_bulk.sources import find_sources
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, read_texts
from bench.harness.upper_bound import UpperBound

from .inputs import varied, write_parquet
from .timing import Timer

_PACKAGES = ("polyhead", "onnxruntime", "tokenizers", "pyarrow")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to compute with")
    parser.add_argument("--variant", default="int8", help="variant to compute with (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--count", type=int, default=200_000, help="texts of all rounds together (default: 200000)")
    parser.add_argument("--rounds", type=int, default=5, help="jobs into which they are divided (default: 5)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    texts = list(varied(read_texts(arguments.texts), arguments.count))
    with tempfile.TemporaryDirectory() as work:
        jobs = measure_jobs(arguments, texts, Path(work))
    for name, values in jobs.items():
        print(f"{name:<20}{'{:.3f} [{:.3f}, {:.3f}]'.format(*values)}")
    settings = {name: getattr(arguments, name) for name in ("variant", "count", "rounds")}
    results.write(arguments.output, {**results.provenance(_PACKAGES), **settings, "job": jobs})


def measure_jobs(arguments: argparse.Namespace, texts: Sequence[str], work: Path) -> dict[str, list[float]]:
    """Runs a job per round between two passes of the upper bound; returns [median, lowest, highest] of each figure."""
    annotator = Annotator(arguments.bundle, variant=arguments.variant, device="cpu")
    size = len(texts) // arguments.rounds
    found: list[Figures] = []
    for number in tqdm(range(arguments.rounds), unit="job"):
        part = texts[number * size : (number + 1) * size]
        path = write_parquet(work / f"{number}.parquet", part, number * size)
        upper_bound = UpperBound(arguments.bundle, arguments.variant, part)
        before = upper_bound.whole_pass()
        job = run_job(annotator, path, work / f"out-{number}")
        after = upper_bound.whole_pass()
        bound = {name: (before[name] + after[name]) / 2 for name in before}
        found.append(
            {
                "efficiency": bound["wall_s"] / job["wall_s"],
                "cpu_efficiency": bound["cpu_s"] / job["cpu_s"],
                "texts_per_s": size / job["wall_s"],
                "texts_per_cpu_s": size / job["cpu_s"],
                "upper_bound": size / bound["wall_s"],
            }
        )
    annotator.close()
    return results.spread_all(found)


def run_job(annotator: Annotator, path: Path, output: Path) -> Figures:
    """Runs one job in this process; returns ``wall_s`` and ``cpu_s``.

    Raises:
        SystemExit: A row has no answer.
    """
    with Timer() as timer:
        plan = Plan(sources=find_sources([str(path)], output), selection=Selection("text", "id"), output=output)
        summary = Job(plan, annotator).run()
    if not summary.is_complete or summary.errors:
        raise SystemExit(f"the job failed: {summary}")
    return timer.figures


if __name__ == "__main__":
    main()

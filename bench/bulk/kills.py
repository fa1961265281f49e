"""Kills a bulk job again and again at random moments, and compares its output with that of an uninterrupted job.

    python -m bench.bulk.kills --bundle build/demo/bundle --output bench/results/bulk_kills.json
    python -m bench.bulk.kills --bundle build/demo/bundle --kills 5 --count 2000    # a quick look

SIGKILL comes after the first new part and a random time, at most twice that of an average part, so that it hits
reading, computing, writing and renaming; the same command follows at once. After each kill every part on disk must be
whole and have the rows of its record. At the end the output must have each row once, in order, with the answers of the
uninterrupted job to 1e-6, and parts of many runs: a job whose parts were all made by the last run shows nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, read_texts

from .inputs import varied, write_parquet

# Starting takes a few seconds, in which a job makes no part.
_MAX_STARTUP_S = 300.0
_POLL_S = 0.02


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to compute with")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--count", type=int, default=20_000, help="texts (default: 20000)")
    parser.add_argument("--parts", type=int, default=200, help="parts of the output (default: 200)")
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(arguments, Path(work))
    print(json.dumps(figures, indent=2))
    results.write(arguments.output, {**results.provenance(), "count": arguments.count, **figures})
    if not figures["equal"]:
        raise SystemExit("the output differs from that of the uninterrupted job")


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs both jobs; returns what was found."""
    path = write_parquet(work / "in.parquet", list(varied(read_texts(arguments.texts), arguments.count)))
    flags = ("--bundle", str(arguments.bundle), "--id-column", "id")
    command = [sys.executable, "-m", "polyhead_client", "bulk", str(path)]
    parts = ("--part-rows", str(max(1, arguments.count // arguments.parts)))
    subprocess.run([*command, str(work / "whole"), *flags, *parts], check=True)
    made_s = sorted((work / "whole" / name).stat().st_mtime for name in _parts(work / "whole"))
    part_s = (made_s[-1] - made_s[0]) / (len(made_s) - 1)
    interrupted = [*command, str(work / "killed"), *flags, *parts]
    torn: list[str] = []
    made: list[int] = []
    chosen = random.Random(0)
    for _ in tqdm(range(arguments.kills), unit="kill"):
        before = len(_parts(work / "killed"))
        if not kill_after(interrupted, work / "killed", before, chosen.uniform(0, 2 * part_s)):
            break
        torn += [name for name in _parts(work / "killed") if not is_whole(work / "killed", name)]
        made.append(len(_parts(work / "killed")) - before)
    kept = len(_parts(work / "killed"))
    subprocess.run(interrupted, check=True)
    return {
        "kills": len(made),
        "parts_made_before_a_kill": results.spread(made),
        "parts_kept_by_the_last_run": kept,
        "parts": len(_parts(work / "whole")),
        "torn_parts": len(torn),
        "leftover_files": len([one for one in (work / "killed").iterdir() if ".tmp-" in one.name]),
        **differences(work / "whole", work / "killed"),
    }


def kill_after(command: Sequence[str], output: Path, parts: int, delay_s: float) -> bool:
    """Starts a job and kills it some time after its first new part; returns whether it was still running."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + _MAX_STARTUP_S
        while len(_parts(output)) <= parts and process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        time.sleep(delay_s)
        running = process.poll() is None
        process.kill()
    return running


def _parts(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("part-*"))


def is_whole(output: Path, name: str) -> bool:
    """Returns whether a part is readable, and has the rows of its record if it has one."""
    try:
        rows = pq.read_table(output / name).num_rows
    except (OSError, pa.ArrowException):
        return False
    record = output / "_parts" / f"{Path(name).stem}.json"
    return not record.exists() or json.loads(record.read_bytes())["rows"] == rows


def differences(expected: Path, found: Path) -> dict[str, Any]:
    """Compares two outputs row by row."""
    left, right = (pyarrow.dataset.dataset(one, format="parquet").to_table() for one in (expected, found))
    same_ids = left["id"].to_pylist() == right["id"].to_pylist()
    largest = 0.0
    for field in left.schema if same_ids else []:
        one, other = (table[field.name].combine_chunks() for table in (left, right))
        if pa.types.is_fixed_size_list(field.type):
            difference = np.abs(np.asarray(one.flatten()) - np.asarray(other.flatten())).max()
            largest = max(largest, float(difference))
        elif not one.equals(other):
            return {"rows": right.num_rows, "largest_difference": float("inf"), "equal": False, "column": field.name}
    return {
        "rows": right.num_rows,
        "doubled_rows": right.num_rows - len(set(right["id"].to_pylist())),
        "largest_difference": largest,
        "equal": same_ids and largest <= 1e-6,
    }


if __name__ == "__main__":
    main()

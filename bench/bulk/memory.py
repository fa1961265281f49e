"""Peak memory of a bulk job on a file of some gigabytes.

    python -m bench.bulk.memory --bundle build/demo/bundle --gigabytes 5 --output bench/results/bulk_memory.json
    python -m bench.bulk.memory --bundle build/demo/bundle --gigabytes 0.2 --formats jsonl    # a quick look

The texts are of all lengths up to --characters: long ones, so that a file of this size has few rows and the job ends
soon. The model reads only their beginning, but the whole file is read. Words are random, so that compression does not
make the file smaller than its content.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser

from .timing import run_measured

_GROUP_ROWS = 2000


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to compute with")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of each file (default: 5)")
    parser.add_argument("--characters", type=int, default=400_000, help="longest text (default: 400000)")
    parser.add_argument("--formats", nargs="+", default=["parquet", "jsonl"], help="(default: parquet jsonl)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    figures = {one: measure(arguments, one) for one in arguments.formats}
    print(json.dumps(figures, indent=2))
    results.write(arguments.output, {**results.provenance(), "gigabytes": arguments.gigabytes, "formats": figures})


def measure(arguments: argparse.Namespace, file_format: str) -> dict[str, Any]:
    """Runs a job on a file of one format."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / f"in.{file_format}"
        rows = write(path, int(arguments.gigabytes * 1e9), arguments.characters)
        command = [sys.executable, "-m", "polyhead_client", "bulk", str(path), str(Path(work) / "out")]
        found = run_measured([*command, "--bundle", str(arguments.bundle)])
        if found is None:
            raise SystemExit(f"the job on {path.name} failed")
        return {"file_gb": path.stat().st_size / 1e9, "rows": rows, **found}


def write(path: Path, size: int, longest: int) -> int:
    """Writes a file of this size; returns its number of rows."""
    texts = _texts(longest)
    rows = 0
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            while file.tell() < size:
                file.write(json.dumps({"text": next(texts)}) + "\n")
                rows += 1
        return rows
    schema = pa.schema([("text", pa.string())])
    # A reader holds a whole page, which a writer ends after so many values at the earliest: by default 1,024.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_batch_size=8) as writer:
        while path.stat().st_size < size:
            group = [next(texts) for _ in range(_GROUP_ROWS)]
            writer.write_table(pa.table({"text": group}, schema))
            rows += len(group)
    return rows


def _texts(longest: int) -> Iterator[str]:
    chosen = random.Random(0)
    words = [f"{chosen.getrandbits(20):x}" for _ in range(20_000)]
    pool = " ".join(chosen.choices(words, k=longest))
    while True:
        begin = chosen.randrange(len(pool) // 2)
        yield pool[begin : begin + chosen.randrange(1, longest)]


if __name__ == "__main__":
    main()

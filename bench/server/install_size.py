"""Size of an installation: packages, megabytes, and the CPU time of the server's imports.

    PYTHON=python3 sh deploy/install.sh server build/server-only
    python -m bench.server.install_size build/server-only --output bench/results/install_size.json

The imports are those of a server on onnxruntime, in fresh processes with a warm file cache. The imports of its
libraries alone are measured in between, round by round, so that noise does not affect the ratio of the two.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.harness import results, source
from bench.harness.arguments import add_output_flag, make_parser

LIBRARIES = "import click, grpc.aio, grpc_health.v1, grpc_reflection, numpy, onnxruntime, prometheus_client, tokenizers"
SERVER = (
    "import polyhead_server.cli, polyhead_server.lifecycle.server, polyhead_server.inference.model, "
    "polyhead_server.engines.onnx"
)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("environment", type=Path, help="virtual environment with the server")
    parser.add_argument("--rounds", type=int, default=7, help="imports of each kind (default: 7)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    python = arguments.environment / "bin/python"
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": source.head(),
        "command": "make package",
        "rounds": arguments.rounds,
        "python": subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        **weigh(next(arguments.environment.glob("lib/python3*/site-packages"))),
        **time_imports(python, arguments.rounds),
    }
    results.write(arguments.output, figures)
    json.dump(figures, sys.stdout, indent=2)
    print()


def weigh(folder: Path) -> dict[str, Any]:
    """Returns the packages and megabytes of a site-packages folder, byte code included, and the largest packages."""
    sizes = {
        entry.name: sum(path.lstat().st_size for path in ([entry] if entry.is_file() else entry.rglob("*")))
        for entry in folder.iterdir()
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    return {
        "packages": sum(name.endswith(".dist-info") for name in sizes),
        "size_mb": round(sum(sizes.values()) / 1e6, 1),
        "largest_mb": {name: round(sizes[name] / 1e6, 1) for name in largest},
    }


def time_imports(python: Path, rounds: int) -> dict[str, Any]:
    """Returns the CPU seconds of the imports of the libraries and of the server, and their ratio."""
    # The first round warms the file cache and does not count.
    found = [(import_cpu_s(python, LIBRARIES), import_cpu_s(python, SERVER)) for _ in range(rounds + 1)][1:]
    ratios = [server / libraries for libraries, server in found]
    return {
        "libraries_cpu_s": round(statistics.median(libraries for libraries, _ in found), 3),
        "server_cpu_s": round(statistics.median(server for _, server in found), 3),
        "ratio": [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))],
    }


def import_cpu_s(python: Path, program: str) -> float:
    """Returns the CPU seconds of a program in a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Isolated mode: nothing of this process's path or environment is imported.
    subprocess.run([python, "-I", "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    main()

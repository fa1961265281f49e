"""What an installation weighs: packages, megabytes, and how long the server's imports take beside its libraries' own.

The imports are those of a server on onnxruntime, in fresh processes with a warm file cache; the libraries are imported
alone in between, round by round, so that the ratio does not move with the machine.

    sh deploy/install.sh server build/server-only
    python bench/server/install_size.py build/server-only --output bench/results/install.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LIBRARIES = "import click, grpc.aio, grpc_health.v1, grpc_reflection, numpy, onnxruntime, prometheus_client, tokenizers"
SERVER = "import polyhead_server.cli, polyhead_server.lifecycle.server, polyhead_server.inference.model, polyhead_server.engines.onnx"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, help="virtual environment with the server")
    parser.add_argument("--rounds", type=int, default=7, help="imports of each kind (default: 7)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    python = arguments.environment / "bin/python"
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        **weigh(next(arguments.environment.glob("lib/python3*/site-packages"))),
        **imports(python, arguments.rounds),
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    json.dump(figures, sys.stdout, indent=2)
    print()


def weigh(folder: Path) -> dict[str, Any]:
    """Packages and megabytes of a site-packages folder, byte code included; the heaviest packages by name."""
    sizes = {
        entry.name: sum(path.lstat().st_size for path in ([entry] if entry.is_file() else entry.rglob("*")))
        for entry in folder.iterdir()
    }
    heaviest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    return {
        "packages": sum(name.endswith(".dist-info") for name in sizes),
        "mb": round(sum(sizes.values()) / 1e6, 1),
        "heaviest_mb": {name: round(sizes[name] / 1e6, 1) for name in heaviest},
    }


def imports(python: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of the imports, and how many times the libraries' own the server's take."""
    found = [(cpu_s(python, LIBRARIES), cpu_s(python, SERVER)) for _ in range(rounds + 1)][1:]
    ratios = [server / libraries for libraries, server in found]
    return {
        "libraries_cpu_s": round(statistics.median(libraries for libraries, _ in found), 3),
        "server_cpu_s": round(statistics.median(server for _, server in found), 3),
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
    }


def cpu_s(python: Path, program: str) -> float:
    """CPU seconds of one fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Isolated: nothing of this process's own path or environment is imported.
    subprocess.run([python, "-I", "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    main()

"""Result files of the benchmark programs: provenance, summary statistics and output."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from polyhead_server.settings import usable_cores

from . import source
from .arguments import program

Figures = dict[str, float]
SERVER_PACKAGES = ("polyhead", "onnxruntime", "grpcio")


def provenance(packages: Iterable[str] = SERVER_PACKAGES) -> dict[str, Any]:
    """Returns the date, commit, command, machine and package versions of a measurement."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": source.head(),
        "command": command_line(),
        "cores": usable_cores(),
        # From the processor itself, so that an emulated one is recognizable. Each extension contains those before it.
        "cpu": np.show_config("dicts")["SIMD Extensions"]["found"],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def command_line() -> str:
    """Returns the command of this process as a user types it, without folders outside the repository."""
    return shlex.join([*program().split(), *(_without_folders(one) for one in sys.argv[1:])])


def _without_folders(argument: str) -> str:
    return Path(argument).name if argument.startswith("/") else argument


def spread(values: Sequence[float]) -> list[float]:
    """Returns the median, the lowest and the highest value."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def spread_all(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the spread of every figure over the rounds of one measurement."""
    return {name: spread([figures[name] for figures in rounds]) for name in rounds[0]}


def write(path: Path | None, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON, at once: a program that is stopped leaves the old report or the new one.

    Does nothing without a path.
    """
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.new")
        staging.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        staging.replace(path)

"""Runs of a program in its result file, written after each one: a repeated command continues where it stopped."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import results, source

TRAINING_PACKAGES = ("polyhead", "torch", "transformers")
Run = dict[str, Any]


class RecordedRuns:
    """The runs of this call and of earlier ones with the same settings.

    Args:
        path: The result file; None to keep the runs in memory.
        settings: Options that change the figures of a run. Those that select runs, such as seeds, are none of them.
        packages: Packages whose versions are recorded.

    Raises:
        SystemExit: The file has runs with other settings.
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, Any], packages: Iterable[str] = TRAINING_PACKAGES
    ) -> None:
        self.runs: list[Run] = []
        self._earlier: list[str] = []
        self._path = path
        # As the file holds them.
        self._settings = json.loads(json.dumps(settings))
        self._packages = tuple(packages)
        if path and path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["settings"] != self._settings:
                sys.exit(f"{path} has runs with {content['settings']}: use the same settings, or another --output")
            self.runs = list(content["runs"])
            self._earlier = [content.get("commit", "")] if self.runs else []

    def has(self, **key: Any) -> bool:
        """Returns whether a run with these values is recorded."""
        return any(all(run.get(name) == value for name, value in key.items()) for run in self.runs)

    def add(self, key: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Records a run, prints it and writes the file."""
        self.runs.append({**key, **figures})
        print(json.dumps(self.runs[-1]), flush=True)
        self._write(complete=False)

    def finish(self) -> None:
        """Records that the command has no further runs to do."""
        self._write(complete=True)

    def _write(self, complete: bool) -> None:
        report = {
            **results.provenance(self._packages),
            "settings": self._settings,
            "complete": complete,
            "runs": self.runs,
        }
        commits = [*self._earlier, report["commit"]]
        report["commit"] = source.of_all(commits, program=source.program_of(report["command"]))
        results.write(self._path, report)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation, None for the deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_text(values: Sequence[float | None], digits: int = 3) -> str:
    """Formats the mean of the known values, and their standard deviation after a ±; nothing without values."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean, deviation = mean_and_deviation(known)
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")

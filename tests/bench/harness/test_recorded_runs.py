"""Finished runs are found again; runs with other settings are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness.recorded_runs import RecordedRuns, mean_text

PACKAGES = ("polyhead",)


def test_repeated_call_finds_the_runs_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "results" / "runs.json"
    first = RecordedRuns(path, {"rows": None, "overrides": ()}, PACKAGES)
    assert not first.has(system="a", seed=0)
    first.add({"system": "a", "seed": 0}, {"accuracy": 0.5})
    second = RecordedRuns(path, {"rows": None, "overrides": ()}, PACKAGES)
    assert second.has(system="a", seed=0)
    assert not second.has(system="a", seed=1)
    second.add({"system": "a", "seed": 1}, {"accuracy": 0.6})
    content = json.loads(path.read_text())
    assert [run["accuracy"] for run in content["runs"]] == [0.5, 0.6]
    assert set(content) == {"date", "commit", "command", "cores", "cpu", "versions", "settings", "complete", "runs"}
    assert not content["complete"]
    second.finish()
    assert json.loads(path.read_text()) == content | {"complete": True}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    RecordedRuns(tmp_path / "runs.json", {"rows": 10}, PACKAGES).add({"seed": 0}, {})
    with pytest.raises(SystemExit, match="use the same settings, or another --output"):
        RecordedRuns(tmp_path / "runs.json", {"rows": 20}, PACKAGES)


def test_runs_without_a_file_are_kept_in_memory() -> None:
    recorded = RecordedRuns(None, {}, PACKAGES)
    recorded.add({"seed": 0}, {})
    assert recorded.has(seed=0)


def test_mean_has_a_deviation_from_two_values_on() -> None:
    assert mean_text([0.5]) == "0.500"
    assert mean_text([0.5, 0.7, None]) == "0.600 ± 0.141"
    assert mean_text([None]) == ""

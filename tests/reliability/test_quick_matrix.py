"""Runs every scenario that takes only minutes in total and whose verdict does not depend on timing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .report import ROOT
from .run import load_scenarios, select_scenarios
from .scenario import SCENARIOS

load_scenarios()
# Independent groups, so that the workers of a parallel run share the scenarios.
GROUPS = 6
UNTIMED = [name for name, one in SCENARIOS.items() if not one.timed]
# They do not run without these corpora.
ON_EXTERNAL_CORPORA = {"naughty strings", "multilingual texts"}


@pytest.mark.model
@pytest.mark.slow(minutes=4)
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("group", range(GROUPS))
def test_scenarios_behave_as_expected_and_their_controls_fail(group: int, demo_bundle: Path) -> None:
    names = UNTIMED[group::GROUPS]
    command: list[str | Path] = [sys.executable, "-m", "tests.reliability.run", "--bundle", demo_bundle, "--quick"]
    # The workers of a parallel run have a scenario each.
    command += ["--at-once", "1", *(f"--only={name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    not_run = done.stdout.count(": not run: ")
    assert not_run <= len(ON_EXTERNAL_CORPORA.intersection(names))
    assert done.stdout.count(": as expected in ") + not_run == len(names)


def test_quick_run_has_all_scenarios_but_those_that_depend_on_timing(capsys: pytest.CaptureFixture[str]) -> None:
    assert select_scenarios(quick=True) == UNTIMED
    skipped = capsys.readouterr().out.strip().rpartition(": ")[2].split(", ")
    assert "overload" in skipped
    scenarios = sum(path.read_text().count("\n@scenario(") for path in (ROOT / "tests/reliability").rglob("*.py"))
    assert len(UNTIMED) == scenarios - len(skipped) > 20

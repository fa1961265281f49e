"""Those programs of the reliability matrix whose verdict hangs on no clock, in their quick forms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.model

FAULTS = (
    "damaged bundles",
    "random cancels",
    "rubbish in a stream",
    "fuzzing",
    "bundle overwritten",
    "texts larger than a pass",
    "broken engine",
)


@pytest.mark.timeout(600)
def test_faults_are_survived_and_controls_fail(demo_bundle: Path) -> None:
    faults = [part for fault in FAULTS for part in ("--only", fault)]
    command: list[str | Path] = [
        sys.executable,
        ROOT / "bench/reliability.py",
        "--bundle",
        demo_bundle,
        "--quick",
        *faults,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": as expected") == len(FAULTS)

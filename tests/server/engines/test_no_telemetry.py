"""What serves texts tells nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = "import {package}, onnxruntime; onnxruntime.get_available_providers()"


def left_behind(package: str, home: Path, **environment: str) -> list[Path]:
    """What importing a package, and onnxruntime after it, writes to the home directory."""
    # Nothing of the environment that tests run in: onnxruntime sends nothing where it sees that.
    paths = os.pathsep.join(path for path in sys.path if path)
    clean = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": paths, **environment}
    subprocess.run([sys.executable, "-B", "-c", _PROGRAM.format(package=package)], check=True, env=clean)
    return list(home.rglob("*"))


@pytest.mark.parametrize("package", ["polyhead_server", "polyhead_export"])
def test_onnxruntime_keeps_no_record_of_us(package: str, tmp_path: Path) -> None:
    assert left_behind(package, tmp_path) == []


def test_onnxruntime_would_keep_one(tmp_path: Path) -> None:
    """The control. When it fails, a newer onnxruntime has another way, or none, and the switch wants a new look."""
    assert left_behind("polyhead_server", tmp_path, ORT_DISABLE_TELEMETRY="0")

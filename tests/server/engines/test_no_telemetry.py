"""The server and the export send no usage data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = "import {package}, onnxruntime; onnxruntime.get_available_providers()"


def files_written(package: str, home: Path, **environment: str) -> list[Path]:
    """Returns the files that importing a package, and onnxruntime after it, writes to the home directory."""
    # A clean environment: onnxruntime sends nothing where it detects a test environment.
    paths = os.pathsep.join(path for path in sys.path if path)
    clean = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": paths, **environment}
    subprocess.run([sys.executable, "-B", "-c", _PROGRAM.format(package=package)], check=True, env=clean)
    return list(home.rglob("*"))


@pytest.mark.parametrize("package", ["polyhead_server", "polyhead_export"])
def test_onnxruntime_keeps_no_record(package: str, tmp_path: Path) -> None:
    assert files_written(package, tmp_path) == []


def test_onnxruntime_keeps_a_record_where_the_switch_is_off(tmp_path: Path) -> None:
    """The control. When it fails, onnxruntime has changed its telemetry, and the switch must be reviewed."""
    assert files_written("polyhead_server", tmp_path, ORT_DISABLE_TELEMETRY="0")

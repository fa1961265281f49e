"""What several rooms test with: the demo model, trained and exported by the real commands, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a test session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def demo_run(shared_folder: Path) -> Path:
    """The run directory of the demo model, trained in full by the command that users type."""
    run = shared_folder / "demo-run"
    with FileLock(shared_folder / "demo-run.lock"):
        if not run.exists():
            config = ROOT / "training/demo/config.toml"
            subprocess.run([BIN / "polyhead-train", config, "--output-dir", run], check=True, cwd=shared_folder)
    return run


@pytest.fixture(scope="session")
def demo_bundle(demo_run: Path, shared_folder: Path) -> Path:
    """The verified bundle of the demo model."""
    bundle = shared_folder / "demo-bundle"
    with FileLock(shared_folder / "demo-bundle.lock"):
        if not bundle.exists():
            subprocess.run([BIN / "polyhead-export", demo_run, bundle], check=True, cwd=shared_folder)
    return bundle

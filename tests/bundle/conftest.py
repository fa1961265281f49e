"""Fixtures of the bundle's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.bundle_rejection import record_parser_calls
from tests.support.tiny_model import bundle_dir, export_report, model, run_dir

__all__ = ["bundle_dir", "export_report", "model", "run_dir"]


@pytest.fixture
def bundle_copy(bundle_dir: Path, tmp_path: Path) -> Path:
    """A copy of an exported bundle, to be damaged."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "copy"))


@pytest.fixture
def parser_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parsers that were called, in order."""
    return record_parser_calls(monkeypatch)

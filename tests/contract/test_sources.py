"""Tests that scan source files see all of them, and notice if they see too few."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import sources
from tests.support.demo import ROOT


@pytest.mark.parametrize("package", sources.MIN_MODULES)
def test_scan_finds_the_modules_of_sub_packages(package: str) -> None:
    found = sources.python_files(package)
    nested = [path for path in found if path.parent != ROOT / package]
    folders = [path for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()]
    assert bool(nested) == bool(folders)


def test_scan_of_a_wrong_folder_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Control: without this, the scans could pass by checking nothing."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="only 0 modules"):
        sources.source_text("server/polyhead_server")


def test_no_test_scans_the_top_folder_of_a_package_only() -> None:
    """``glob("*.py")`` on a package skips its sub-packages."""
    packages = re.compile(r"polyhead_\w+[^\n]*\.glob\(\s*[\"']\*\.py")
    tests = list((ROOT / "tests").rglob("*.py"))
    assert len(tests) > 100
    assert [path for path in tests if path != Path(__file__) and packages.search(path.read_text())] == []

"""The committed stubs are those of the contract."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_committed_stubs_are_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "proto/generate.py", tmp_path], check=True, capture_output=True)
    committed = ROOT / "proto/gen"
    assert files(tmp_path) == files(committed)
    _, changed, unreadable = filecmp.cmpfiles(tmp_path, committed, sorted(files(tmp_path)), shallow=False)
    assert (changed, unreadable) == ([], []), "run `make proto` and commit what it writes"

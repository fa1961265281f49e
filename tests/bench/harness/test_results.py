from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

from bench.harness import results


def test_spread_is_median_lowest_and_highest() -> None:
    assert results.spread([3.0, 1.0, 2.00049]) == [2.0, 1.0, 3.0]
    assert results.spread_all([{"p50_ms": 1.0}, {"p50_ms": 3.0}]) == {"p50_ms": [2.0, 1.0, 3.0]}


def test_recorded_command_has_no_folders_outside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ignored", "--bundle", "/home/me/models/demo", "--texts", "data/a.jsonl"])
    assert results.command_line().endswith(" --bundle demo --texts data/a.jsonl")


def test_report_is_written_where_a_path_is_given(tmp_path: Path) -> None:
    results.write(None, {"date": "today"})
    path = tmp_path / "new/report.json"
    results.write(path, {"loads": {}})
    assert json.loads(path.read_text()) == {"loads": {}}
    assert list(path.parent.iterdir()) == [path]


def test_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    results.write(path, {"round": 1})

    def half(self: Path, content: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        results.write(path, {"round": 2})
    assert json.loads(path.read_text()) == {"round": 1}

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.harness import environments

KNOWN = {"one": ["a==1", "torch==2"], "other": ["b==1"]}


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["install", *arguments])
    return list(environments.parse_names(argparse.ArgumentParser(), KNOWN).names)


def test_all_environments_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(monkeypatch) == ["one", "other"]
    assert parsed(monkeypatch, "other") == ["other"]


def test_unknown_environment_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "one", "another")
    assert "unknown: another; available: one, other" in capsys.readouterr().err


def test_torch_comes_first_and_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> Any:
        commands.append(command)
        if check:
            Path(command[-1]).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0 if check or "b==1" not in command else 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="not installed: other;"):
        environments.install(tmp_path, KNOWN, "python3.11")
    assert commands[0] == ["python3.11", "-m", "venv", "--clear", str(tmp_path / "one")]
    pip = [str(tmp_path / "one/bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    assert commands[1:3] == [[*pip, "torch==2"], [*pip, "a==1", "torch==2"]]
    # What was installed stays; what failed, or has other requirements now, is installed again.
    commands.clear()
    environments.install(tmp_path, {"one": KNOWN["one"]}, "python3.11")
    assert not commands
    with pytest.raises(SystemExit, match="not installed: other;"):
        environments.install(tmp_path, {"one": [*KNOWN["one"], "c==1"], "other": KNOWN["other"]}, "python3.11")
    assert [Path(command[-1]).name for command in commands if "venv" in command] == ["one", "other"]

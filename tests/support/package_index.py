"""Environments of packages from pip's index, for slow tests; they are skipped if the index does not answer."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .demo import ROOT


class Environment:
    """A new virtual environment.

    Attributes:
        python: Its interpreter.
    """

    def __init__(self, folder: Path) -> None:
        """Creates it; skips the test if the index does not answer."""
        if not _index_answers():
            pytest.skip("pip's index does not answer")
        venv.create(folder, with_pip=True)
        self.python = folder / "bin/python"

    def pip(self, *arguments: str | Path) -> str:
        """Runs pip; returns its standard output.

        Raises:
            AssertionError: pip failed, although the index answers.
        """
        command = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        return self.run(*command)

    @staticmethod
    def run(*command: str | Path, cwd: Path = ROOT, timeout_s: float = 900) -> str:
        """Runs a program, by default in the repository; returns its standard output.

        The packages that it imports are those of its environment: PYTHONPATH does not apply to it.

        Raises:
            AssertionError: It failed; the message is its output.
        """
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@functools.cache
def _index_answers() -> bool:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "pip", "--retries", "1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0

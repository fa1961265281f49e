"""Fixtures: a bundle of a tiny model, and the command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tiny_model import bundle_dir, export_report, model, run_dir

__all__ = ["bundle_dir", "export_report", "model", "run_dir"]


class Command:
    """``polyhead bulk`` in a process."""

    def __init__(self, *arguments: str | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polyhead_client", "bulk", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_for_message(self, text: str) -> None:
        """Reads standard error up to the line that contains ``text``."""
        assert self._process.stderr
        assert any(text in line for line in iter(self._process.stderr.readline, "")), f"not written: {text}"

    def result(self, timeout_s: float = 120) -> tuple[int, str, str]:
        """Waits for the end; returns exit code, standard output and standard error."""
        stdout, stderr = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, stdout, stderr

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    """Starts a command: ``start(*arguments)``; the processes end with the test."""
    started: list[Command] = []

    def begin(*arguments: str | Path) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield begin
    for command in started:
        command.kill()


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Waits until something is the case."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen")

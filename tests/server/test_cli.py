"""The end of a process, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A thread that the interpreter would wait for, as it would end under the feet of one that it does not wait for.
PROGRAM = """
import os, pathlib, signal, threading
from polyhead_server.lifecycle.entry import run
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

async def work(_):
    threading.Thread(target=threading.Event().wait).start()
    {}

run(Settings(bundle=pathlib.Path("x")), work)
"""


def ends_with(last: str) -> tuple[int, str]:
    """Exit code and log of a process whose work ends with a statement."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_process_ends_while_a_thread_is_at_work(code: int) -> None:
    assert ends_with(f"return {code}") == (code, "")


def test_what_it_cannot_start_with_is_told_in_one_line() -> None:
    assert ends_with("raise StartupError('it is damaged')") == (2, "polyhead-serve: it is damaged\n")


def test_what_nobody_expected_is_logged_and_ends_it() -> None:
    code, log = ends_with("raise RuntimeError('a bug')")
    assert code == 1
    assert "RuntimeError: a bug" in log


def test_hangup_before_there_is_anything_to_reload_ends_nothing() -> None:
    assert ends_with("os.kill(os.getpid(), signal.SIGHUP); return 0") == (0, "")

"""The exit of a server process, whatever its threads are doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

# At a normal exit the interpreter would wait for this thread forever.
PROGRAM = """
import os, pathlib, signal, threading
from polyhead_server.lifecycle.entry import run
from polyhead_server.errors import StartupError
from polyhead_server.settings import Settings

async def serve(_):
    threading.Thread(target=threading.Event().wait).start()
    {}

run(Settings(bundle=pathlib.Path("x")), serve)
"""


def run_until(last: str) -> tuple[int, str]:
    """Returns exit code and standard error of a process whose last statement is ``last``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("code", [0, 1])
def test_process_exits_while_a_thread_is_running(code: int) -> None:
    assert run_until(f"return {code}") == (code, "")


def test_startup_error_is_printed_in_one_line() -> None:
    assert run_until("raise StartupError('it is damaged')") == (2, "polyhead-serve: it is damaged\n")


def test_unexpected_error_is_logged_and_exits_with_code_1() -> None:
    code, log = run_until("raise RuntimeError('a bug')")
    assert code == 1
    assert "RuntimeError: a bug" in log


def test_sighup_before_the_model_is_ready_is_ignored() -> None:
    assert run_until("os.kill(os.getpid(), signal.SIGHUP); return 0") == (0, "")


def test_process_may_open_as_many_files_as_the_hard_limit_allows() -> None:
    program = PROGRAM.format("import resource; return len(set(resource.getrlimit(resource.RLIMIT_NOFILE)))")
    command = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", sys.executable, "-c", program]
    # One number for both limits.
    assert subprocess.run(command, timeout=60, check=False).returncode == 1

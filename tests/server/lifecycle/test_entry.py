"""The exit of a server process, whatever its threads are doing."""

from __future__ import annotations

import subprocess
import sys

from polyhead_server.interpreter import SWITCH_INTERVAL_S

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


def test_process_exits_while_a_thread_is_running() -> None:
    assert run_until("return 1") == (1, "")


def test_startup_error_is_printed_in_one_line() -> None:
    assert run_until("raise StartupError('it is damaged')") == (2, "polyhead-serve: it is damaged\n")


def test_unexpected_error_is_logged_and_the_interpreter_is_configured_before_the_work() -> None:
    code, log = run_until("import sys; raise RuntimeError(str(sys.getswitchinterval()))")
    assert code == 1
    assert f"RuntimeError: {SWITCH_INTERVAL_S}" in log


def test_sighup_before_the_model_is_ready_is_ignored_and_code_0_is_passed_on() -> None:
    assert run_until("os.kill(os.getpid(), signal.SIGHUP); return 0") == (0, "")


def test_process_without_standard_error_writes_its_log_nowhere() -> None:
    """What is opened first gets the descriptor of standard error, such as a socket or a file of a bundle."""
    program = PROGRAM.format("import logging; logging.getLogger('polyhead_server').error('x'); return 0")
    opened = "import tempfile\nfile = tempfile.TemporaryFile()\nassert file.fileno() == 2\n"
    check = program.replace("run(Settings", "run_(Settings").replace("import run\n", "import run as run_\n")
    check = opened + check.replace("return 0", "logging.getLogger().handlers[0].flush(); return file.tell()")
    done = subprocess.run(["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, check], timeout=60, check=False)
    assert done.returncode == 0


def test_process_may_open_as_many_files_as_the_hard_limit_allows() -> None:
    program = PROGRAM.format("import resource; return len(set(resource.getrlimit(resource.RLIMIT_NOFILE)))")
    command = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", sys.executable, "-c", program]
    # One number for both limits.
    assert subprocess.run(command, timeout=60, check=False).returncode == 1

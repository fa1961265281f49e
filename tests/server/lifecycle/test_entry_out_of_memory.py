"""Out-of-memory errors at each boundary of a real process: it ends with code 1, and its supervisor can restart it."""

from __future__ import annotations

import subprocess
import sys

import pytest

OUT_OF_MEMORY = "polyhead-serve: out of memory; exiting so that the supervisor restarts the process"

PROGRAM = """
import asyncio, logging, pathlib, threading
from polyhead_server.lifecycle.entry import run
from polyhead_server.settings import Settings

def fail():
    raise {error}

async def fail_later():
    fail()

class Finalized:
    def __del__(self):
        fail()

def log_as(name):
    try:
        fail()
    except Exception:
        logging.getLogger(name).exception("a call failed")

async def serve(_):
    {statement}
    await asyncio.sleep(0.2)
    return 0

run(Settings(bundle=pathlib.Path("x")), serve, fast_loop={fast_loop})
"""

BOUNDARIES = {
    "work": "fail()",
    "callback": "asyncio.get_running_loop().call_soon(fail)",
    "task": "asyncio.create_task(fail_later())",
    "thread": "threading.Thread(target=fail).start()",
    "finalizer": "Finalized()",
    "grpc": "log_as('grpc._cython.cygrpc')",
}
OWN_LOG_LINE = "log_as('polyhead_server.lifecycle.reload')"


def exit_of(statement: str, error: str, fast_loop: bool = True) -> tuple[int, str]:
    """Returns exit code and standard error of a process in which a statement raises or logs an error."""
    program = PROGRAM.format(statement=statement, error=error, fast_loop=fast_loop)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_process_without_memory_exits_with_code_1_and_one_line(boundary: str) -> None:
    assert exit_of(BOUNDARIES[boundary], "MemoryError") == (1, OUT_OF_MEMORY + "\n")


@pytest.mark.parametrize("boundary", ["callback", "task"])
def test_supervisor_without_memory_exits_too(boundary: str) -> None:
    """The supervisor runs on asyncio's own loop."""
    assert exit_of(BOUNDARIES[boundary], "MemoryError", fast_loop=False) == (1, OUT_OF_MEMORY + "\n")


def test_process_continues_after_other_errors() -> None:
    """Control: the error reaches each boundary, and is logged there."""
    statements = [statement for boundary, statement in BOUNDARIES.items() if boundary != "work"]
    code, log = exit_of("; ".join(statements), "ValueError('a bug')")
    assert code == 0
    # What a library logs may contain data of a request, so only the type of its exception is shown.
    assert log.count("ValueError was logged") == 1
    assert log.count("ValueError: a bug") == len(statements) - 1
    assert OUT_OF_MEMORY not in log


def test_own_log_line_of_a_lack_of_memory_does_not_end_the_process() -> None:
    """A reload that finds no memory for a second model is logged and refused; the server continues."""
    code, log = exit_of(OWN_LOG_LINE, "MemoryError")
    assert code == 0
    assert "MemoryError" in log

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.harness.memory import memory
from bench.harness.processes import cpu_s, find_server, thread_cpu_s

TARGET = "127.0.0.1:1"
# A server with one worker; both wait for the end of their input.
SERVER = """
import subprocess, sys
worker = "import sys; memory = bytearray(40 << 20); print(flush=True); sys.stdin.read()"
subprocess.Popen([sys.executable, "-c", worker])
sys.stdin.read()
"""


def test_memory_includes_the_workers() -> None:
    command = [sys.executable, "-c", SERVER, "--listen", TARGET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        server.stdout.readline()
        figures = memory(TARGET)
        assert 45 < figures["rss_mb"] <= figures["peak_rss_mb"] < 200
        assert find_server(TARGET) == server.pid
        assert set(thread_cpu_s(server.pid)) == {server.pid}
        assert cpu_s(server.pid) == pytest.approx(sum(thread_cpu_s(server.pid).values()), abs=0.05)
        server.communicate()


@pytest.mark.parametrize("function", [memory, find_server])
def test_unknown_server_ends_the_program(function: object) -> None:
    with pytest.raises(SystemExit, match="no process was started with --listen"):
        function("127.0.0.1:2")  # type: ignore[operator]

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness.processes import session_cpu_s

# Burns CPU time in a child process, and tells when that is done.
PROGRAM = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass\\nprint('done', flush=True)\\ntime.sleep(60)"
subprocess.run([sys.executable, "-c", burn], start_new_session=OWN_SESSION)
"""


@pytest.mark.parametrize("own_session", [False, True])
def test_cpu_time_of_a_session_includes_child_processes(own_session: bool) -> None:
    program = PROGRAM.replace("OWN_SESSION", str(own_session))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            assert process.stdout
            assert process.stdout.readline() == b"done\n"
            # The two clocks differ by a tick or two.
            assert session_cpu_s(process.pid) >= 0.25
        finally:
            for pid in [*map(int, children.read_text().split()), process.pid]:
                os.kill(pid, signal.SIGKILL)

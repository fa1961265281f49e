from __future__ import annotations

import os
import signal
import subprocess
import sys

from bench.harness.processes import session_cpu_s

# Burns CPU time in a child process, and tells when that is done.
PROGRAM = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass\\nprint('done', flush=True)\\ntime.sleep(60)"
subprocess.run([sys.executable, "-c", burn])
"""


def test_cpu_time_of_a_session_includes_child_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"done\n"
            # The two clocks differ by a tick or two.
            assert session_cpu_s(process.pid) >= 0.25
        finally:
            os.killpg(process.pid, signal.SIGKILL)

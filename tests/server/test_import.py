"""What importing the package sets before its dependencies are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_THREADS = """
import os
{imported}
import numpy as np
values = np.ones((512, 512), dtype=np.float32)
values @ values
print(len(os.listdir("/proc/self/task")))
"""


def _threads(imported: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", _THREADS.format(imported=imported)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="OpenBLAS has one thread on one core")
def test_numpy_starts_no_threads_of_its_own_in_the_server() -> None:
    assert _threads("") > 1
    assert _threads("import polyhead_server.cli") == 1

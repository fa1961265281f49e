from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

# A process of its own: what others have left would be taken over, and nothing grow.
_PASSES = """
import resource, sys
from pathlib import Path
import numpy as np
import polyhead_bundle as bundle
from polyhead_server.engines.onnx import OnnxEngine

def mb_after(texts, tokens):
    for _ in range(3):
        engine.run(np.full((texts, tokens), 7), np.ones((texts, tokens), np.int64))
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

engine = OnnxEngine(bundle.load(Path(sys.argv[1])), "int8", "cpu")
before = mb_after(4, 40)
mb_after(64, 128)
print(mb_after(4, 40) - before)
"""


def test_memory_of_a_large_pass_is_given_back(demo_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _PASSES, demo_bundle], capture_output=True, text=True, check=True)
    # An arena that keeps what it has would have kept 178, and one that gives back what it can keeps 94 or less.
    assert float(done.stdout) < 130

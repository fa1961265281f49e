from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from polyhead_server.memory import give_back


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
def test_freed_memory_returns_to_the_system() -> None:
    blocks = [bytes(1000) for _ in range(100_000)]
    # While the last one stays, the heap does not shrink by itself.
    last = blocks[-1]
    del blocks
    held = resident_bytes()
    give_back()
    assert resident_bytes() < held - 80e6
    assert last

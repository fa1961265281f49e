"""Server processes for the benchmark programs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from polyhead_client import Client

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[str]:
    """A server process on a free port; yields its HOST:PORT once it answers, and ends it afterwards."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    process = subprocess.Popen(command)
    try:
        with Client(target, wait_for_ready=True) as client:
            client.analyze(["ready?"], deadline_s=120)
        yield target
    finally:
        process.terminate()
        process.wait(60)

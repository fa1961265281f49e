"""Server processes for the benchmark programs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

BIN = Path(sys.executable).parent
_START_S = 120


@contextlib.contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[str]:
    """A server process on a free port; yields its HOST:PORT once it answers, and ends it afterwards."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    process = subprocess.Popen(command)
    try:
        wait_until_serving(target)
        yield target
    finally:
        process.terminate()
        process.wait(60)


def wait_until_serving(target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
    """Waits until the health service of a server says that it serves."""
    with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=_START_S, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise SystemExit(f"the server on {target} ended before it was ready")

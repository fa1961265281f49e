"""A real server process on a real socket, with the demo model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import BIN

START_S = 60


@dataclass
class Server:
    """A server process.

    Attributes:
        process: The process; its standard error goes to ``log``.
        target: HOST:PORT.
        log: File with everything that the server said.
    """

    process: subprocess.Popen[bytes]
    target: str
    log: Path

    def wait_until_serving(self) -> list[int]:
        """Follows the health service until it says SERVING; returns every status that it said on the way."""
        seen: list[int] = []
        # Often enough to see every status: a server that listens is soon ready.
        backoff = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max")]
        with grpc.insecure_channel(self.target, backoff) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=START_S, wait_for_ready=True):
                seen.append(answer.status)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return seen
        raise AssertionError(f"the health service ended after {seen}: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


Start = Callable[..., Server]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers, and ends those that still run when the tests of the file are done."""
    servers: list[Server] = []

    def run(
        bundle: Path, *flags: str, environment: Mapping[str, str] | None = None, target: str | None = None
    ) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        address = target or f"127.0.0.1:{free_port()}"
        command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", address, *flags]
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stderr=stderr, env={**os.environ, **(environment or {})})
        servers.append(Server(process, address, log))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)

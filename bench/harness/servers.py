"""Server processes of the benchmark programs and the tests: ports, startup and metrics."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

BIN = Path(sys.executable).parent
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 120.0
# Interval at which the end of a process is noticed.
_POLL_INTERVAL_S = 0.5
# Above the ports that the services of a machine usually listen on.
_FIRST_PORT = 20_000


@contextlib.contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[str]:
    """Runs a server on a free port; yields its HOST:PORT once it serves, and stops it afterwards."""
    target = f"{_HOST}:{free_port()}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    with running_command(command, target):
        yield target


@contextlib.contextmanager
def running_command(
    command: Sequence[str], target: str, log: Path | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command of a server; yields its process once it serves, and stops it afterwards.

    ``target`` and ``log`` are those of ``wait_until_serving``, ``options`` further arguments of ``subprocess.Popen``.
    """
    process = subprocess.Popen(command, **options)
    try:
        wait_until_serving(process, target, log)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """Reserves a port for the lifetime of this process and returns it.

    No other process gets it from here, and no outgoing connection takes it. A port that the kernel picks does not
    have these properties: a connection or the next caller may take it before the server binds it.

    Raises:
        RuntimeError: No port is free.
    """
    for port in random.SystemRandom().sample(range(_FIRST_PORT, _first_ephemeral()), 1000):
        # The datagram port of the same number serves as the lock; the kernel releases it when this process ends.
        with socket.socket(type=socket.SOCK_DGRAM) as lock, socket.socket() as probe:
            try:
                lock.bind((_HOST, port))
                probe.bind(("", port))
            except OSError:
                continue
            lock.detach()
            return port
    raise RuntimeError(f"no port from {_FIRST_PORT} to {_first_ephemeral() - 1} is free")


def _first_ephemeral() -> int:
    """Returns the first port that the kernel assigns to outgoing connections."""
    try:
        found = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        found = 32_768
    # Where the kernel assigns all ports to connections, the usual default is as good as any.
    return found if found > _FIRST_PORT + 1000 else 32_768


def metric(address: str, name: str) -> float:
    """Scrapes a server and returns the sum of a metric over all labels; 0 if the metric is absent."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        families: Any = text_string_to_metric_families(page.read().decode())
    return float(sum(one.value for family in families for one in family.samples if one.name == name))


def wait_until_serving(
    process: subprocess.Popen[bytes],
    target: str,
    log: Path | None = None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout_s: float = _START_TIMEOUT_S,
) -> list[int]:
    """Watches the health service of a server until it reports SERVING.

    Args:
        process: The server, or its supervisor.
        target: HOST:PORT.
        log: The log file of the server, which the error message quotes.
        credentials: Channel credentials for a server with TLS.
        timeout_s: Maximum time to wait.

    Returns:
        Every status that the server reported on the way.

    Raises:
        RuntimeError: The server ended, or is not ready in time.
    """
    seen: list[int] = []
    ends = time.monotonic() + timeout_s
    # Reconnects often enough to see every status: a server that listens is ready soon.
    backoff = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max")]
    opened = (
        grpc.secure_channel(target, credentials, backoff) if credentials else grpc.insecure_channel(target, backoff)
    )
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < ends:
            try:
                for answer in stub.Watch(
                    health_pb2.HealthCheckRequest(), timeout=_POLL_INTERVAL_S, wait_for_ready=True
                ):
                    # A watch begins with the status that the previous one ended with.
                    if answer.status not in seen[-1:]:
                        seen.append(answer.status)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return seen
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                    raise
    reason = (
        f"is not ready after {timeout_s:g} s" if process.poll() is None else f"ended with code {process.returncode}"
    )
    quoted = f": {log.read_text()}" if log else ""
    raise RuntimeError(f"the server on {target} {reason}, its health {seen}{quoted}")

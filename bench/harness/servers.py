"""Server processes for the benchmark programs and the tests: their ports, and how to wait for them."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

BIN = Path(sys.executable).parent
_HOST = "127.0.0.1"
_START_S = 120.0
# How soon the end of a process is noticed.
_LOOK_S = 0.5
# Above what services of a machine like to listen on.
_FIRST_PORT = 20_000


@contextlib.contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[str]:
    """A server process on a free port; yields its HOST:PORT once it answers, and ends it afterwards."""
    target = f"{_HOST}:{free_port()}"
    command = [str(BIN / "polyhead-serve"), str(bundle), "--listen", target, "--log-level", "warning", *flags]
    process = subprocess.Popen(command)
    try:
        wait_until_serving(process, target)
        yield target
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """A port that is this process's for as long as it lives: nobody else gets it from here, and no connection takes it.

    Ports that the kernel picks will not do: before the server binds one, a connection, or the next to ask, may have it.
    """
    for port in random.SystemRandom().sample(range(_FIRST_PORT, _first_ephemeral()), 1000):
        # Whoever holds the datagram port of the same number has the port; the kernel takes it back when we end.
        with socket.socket(type=socket.SOCK_DGRAM) as claim, socket.socket() as probe:
            try:
                claim.bind((_HOST, port))
                probe.bind(("", port))
            except OSError:
                continue
            claim.detach()
            return port
    raise RuntimeError(f"no port from {_FIRST_PORT} to {_first_ephemeral() - 1} is free")


def _first_ephemeral() -> int:
    """Where the ports begin that the kernel gives to connections."""
    try:
        found = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        found = 32_768
    # On a machine that gives all of them to connections, one in the middle is as good as any.
    return found if found > _FIRST_PORT + 1000 else 32_768


def metric(address: str, name: str) -> float:
    """A number among the metrics of a server, with whatever labels; 0 where it is not there."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        families: Any = text_string_to_metric_families(page.read().decode())
    return float(sum(one.value for family in families for one in family.samples if one.name == name))


def wait_until_serving(
    process: subprocess.Popen[bytes],
    target: str,
    log: Path | None = None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout_s: float = _START_S,
) -> list[int]:
    """Follows the health service of a server until it says SERVING.

    Args:
        process: The server, or its supervisor.
        target: HOST:PORT.
        log: What the server said, for the error.
        credentials: Of a channel to a server with TLS.
        timeout_s: For how long to wait.

    Returns:
        Every status that it said on the way.

    Raises:
        RuntimeError: It ended, or is not ready in time; with its log.
    """
    seen: list[int] = []
    ends = time.monotonic() + timeout_s
    # Often enough to see every status: a server that listens is soon ready.
    backoff = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max")]
    opened = (
        grpc.secure_channel(target, credentials, backoff) if credentials else grpc.insecure_channel(target, backoff)
    )
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < ends:
            try:
                for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=_LOOK_S, wait_for_ready=True):
                    # A watch begins with what the one before it ended with.
                    if answer.status not in seen[-1:]:
                        seen.append(answer.status)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return seen
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                    raise
    how = f"is not ready after {timeout_s:g} s" if process.poll() is None else f"ended with code {process.returncode}"
    said = f": {log.read_text()}" if log else ""
    raise RuntimeError(f"the server on {target} {how}, its health {seen}{said}")

"""Ray Serve with the application of this repository: a cluster of its own, which ends with the block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from .processes import cpu_s
from .servers import BIN, free_port
from .texts import ROOT

CONFIG = ROOT / "deploy/ray/serve.yaml"
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0
_REPLICA = "ray::ServeReplica"


@dataclass
class RayServe:
    """A running cluster.

    Attributes:
        process: ``serve run``.
        target: HOST:PORT of the gRPC proxy.
        http_target: HOST:PORT of the HTTP proxy.
        log: File with what it writes.
    """

    process: subprocess.Popen[bytes]
    target: str
    http_target: str
    log: Path

    def processes(self) -> dict[int, str]:
        """Returns the command lines of all processes of the cluster, by process id."""
        children: dict[int, list[int]] = {}
        commands: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            # A process may end while it is inspected.
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        found, left = {}, [self.process.pid]
        while left:
            pid = left.pop()
            found[pid] = commands.get(pid, "")
            left += children.get(pid, [])
        return found

    def replicas(self) -> list[int]:
        """Returns the process ids of the replicas."""
        return [pid for pid, command in self.processes().items() if command.startswith(_REPLICA)]

    def cpu_s(self) -> float:
        """Returns the CPU seconds of all processes of the cluster."""
        total = 0.0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                total += cpu_s(pid)
        return total


@contextlib.contextmanager
def ray_serving(
    folder: Path, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[RayServe]:
    """Runs ``serve run`` with the config file of deploy/ray, on free ports; yields it once it answers.

    Args:
        folder: Receives the config file and the log.
        arguments: Those of the application, in place of the ones in the file.
        environment: More environment variables.

    Raises:
        RuntimeError: It ended or does not answer in time; quotes the end of the log.
    """
    grpc_port, http_port = free_port(), free_port()
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"].update(host=_HOST, port=http_port)
    config["grpc_options"]["port"] = grpc_port
    config["applications"][0]["args"] = dict(arguments)
    path, log = folder / "serve.yaml", folder / "serve.log"
    path.write_text(yaml.safe_dump(config))
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", **(environment or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "serve", "run", path], env=variables, stdout=output, stderr=output, start_new_session=True
        )
    cluster = RayServe(process, f"{_HOST}:{grpc_port}", f"{_HOST}:{http_port}", log)
    try:
        _wait_until_ready(cluster)
        yield cluster
    finally:
        _stop(cluster)


def _wait_until_ready(cluster: RayServe) -> None:
    ends = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < ends and cluster.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{cluster.http_target}/health", timeout=5):
                return
        except OSError:
            # Not up yet, or 503.
            pass
        time.sleep(0.5)
    raise RuntimeError("Ray Serve does not answer:\n" + cluster.log.read_text(errors="replace")[-4000:])


def _stop(cluster: RayServe) -> None:
    """Shuts Serve down and ends every process of the cluster, also those whose parent has ended."""
    processes = cluster.processes()
    cluster.process.send_signal(signal.SIGINT)
    try:
        cluster.process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        cluster.process.kill()
        cluster.process.wait()
    for pid, command in processes.items():
        # Not another process that has got the number meanwhile.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() == command:
                os.kill(pid, signal.SIGKILL)

"""Server processes, and their state as reported by the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_client import AsyncClient, Tls

from bench.harness.servers import BIN, free_port, wait_until_serving

_TIMEOUT_S = 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server process.

    Attributes:
        process: The process; the supervisor if there are several workers.
        target: HOST:PORT.
        log: File with the log of the server.
        tls: Client credentials, if the server requires TLS.
    """

    process: subprocess.Popen[bytes]
    target: str
    log: Path
    tls: Tls | None = None

    @property
    def port(self) -> int:
        """The port on which the server listens."""
        return int(self.target.rpartition(":")[2])

    async def wait_until_serving(self) -> None:
        """Waits until the health service reports SERVING."""
        credentials = self.tls.credentials() if self.tls else None
        await asyncio.to_thread(wait_until_serving, self.process, self.target, self.log, credentials=credentials)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the process to end and returns its exit code."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, _TIMEOUT_S)


def start_server(bundle: Path, log: Path, *flags: str, target: str | None = None, wrap: Sequence[str] = ()) -> Server:
    """Starts a server without waiting until it serves.

    Args:
        bundle: The bundle to serve.
        log: File to which the log of the server is appended.
        flags: Flags of ``polyhead-serve``.
        target: HOST:PORT; a free port of the loopback interface by default.
        wrap: Command that runs the server, such as ``taskset -c 0``.
    """
    address = target or f"127.0.0.1:{free_port()}"
    command = [*wrap, str(BIN / "polyhead-serve"), str(bundle), "--listen", address, "--device", "cpu", *flags]
    with log.open("ab") as stderr:
        return Server(subprocess.Popen(command, stderr=stderr), address, log)


@contextlib.asynccontextmanager
async def run_server(
    bundle: Path,
    log_dir: Path,
    *flags: str,
    target: str | None = None,
    wrap: Sequence[str] = (),
    tls: Tls | None = None,
) -> AsyncIterator[Server]:
    """Runs a server that is ready to serve; it is stopped afterwards, whatever its state."""
    server = start_server(bundle, log_dir / "server.log", *flags, target=target, wrap=wrap)
    server.tls = tls
    try:
        await server.wait_until_serving()
        yield server
    finally:
        await stop_server(server)


@contextlib.asynccontextmanager
async def run_server_with_client(
    bundle: Path, log_dir: Path, *flags: str, target: str | None = None, connections: int = 1
) -> AsyncIterator[tuple[Server, AsyncClient]]:
    """Runs a server that is ready to serve, and yields it with a shipped client that is connected to it."""
    async with (
        run_server(bundle, log_dir, *flags, target=target) as server,
        AsyncClient(server.target, connections=connections) as client,
    ):
        yield server, client


async def stop_server(server: Server) -> None:
    """Stops a server that may have stopped already; kills it if it does not stop in time."""
    if server.process.poll() is None:
        try:
            await server.stop()
        except subprocess.TimeoutExpired:
            await server.stop(signal.SIGKILL)


async def wait_until(done: Callable[[], bool], problem: str) -> None:
    """Waits until a condition holds; raises RuntimeError with ``problem`` if it does not hold in time."""
    end = time.monotonic() + _TIMEOUT_S
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(problem)
        await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def count_listeners(port: int) -> int:
    """Number of sockets that listen on a port of this machine, which is the number of workers that serve."""
    # gRPC listens on the IPv6 form of an IPv4 address.
    lines = (line for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:])
    fields = (line.split() for line in lines)
    return sum(one[3] == "0A" and int(one[1].rpartition(":")[2], 16) == port for one in fields)


def count_connections(port: int, pid: int) -> int:
    """Number of established connections to a port that a process of this machine has accepted."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()))
    lines = (line for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:])
    fields = (line.split() for line in lines)
    return sum(
        one[3] == "01" and int(one[1].rpartition(":")[2], 16) == port and f"socket:[{one[9]}]" in inodes
        for one in fields
    )


def children(pid: int) -> list[int]:
    """Ids of the running child processes of a process."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def address_space(pid: int) -> int:
    """Size of the mapped address space of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors(pid: int) -> int:
    """Number of open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def thread_cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds of each thread by thread id; the thread with the id of the process runs the event loop."""
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            found[int(folder.name)] = _TICK_S * (int(fields[11]) + int(fields[12]))
    return found

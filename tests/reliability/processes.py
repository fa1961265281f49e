"""Servers as processes, and what the kernel knows of them."""

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

_END_S = 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server process.

    Attributes:
        process: The process; of several workers, their supervisor.
        target: HOST:PORT.
        log: File with everything that it said.
        tls: How to connect, where it wants TLS.
    """

    process: subprocess.Popen[bytes]
    target: str
    log: Path
    tls: Tls | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.target.rpartition(":")[2])

    async def serving(self) -> None:
        """Waits until its health service says SERVING."""
        credentials = self.tls.credentials() if self.tls else None
        await asyncio.to_thread(wait_until_serving, self.process, self.target, self.log, credentials=credentials)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, _END_S)


Served = tuple[Server, AsyncClient]


def start(bundle: Path, log: Path, *flags: str, target: str | None = None, wrap: Sequence[str] = ()) -> Server:
    """Starts a server, on a free port unless told which; it does not serve yet.

    Args:
        bundle: What to serve.
        log: File for what it says; added to.
        flags: Of ``polyhead-serve``.
        target: HOST:PORT.
        wrap: A command that starts it, such as ``taskset -c 0``.
    """
    address = target or f"127.0.0.1:{free_port()}"
    command = [*wrap, str(BIN / "polyhead-serve"), str(bundle), "--listen", address, "--device", "cpu", *flags]
    with log.open("ab") as stderr:
        return Server(subprocess.Popen(command, stderr=stderr), address, log)


@contextlib.asynccontextmanager
async def running(
    bundle: Path,
    folder: Path,
    *flags: str,
    target: str | None = None,
    wrap: Sequence[str] = (),
    tls: Tls | None = None,
) -> AsyncIterator[Server]:
    """A server that serves; it is ended afterwards, whatever state it is in."""
    server = start(bundle, folder / "server.log", *flags, target=target, wrap=wrap)
    server.tls = tls
    try:
        await server.serving()
        yield server
    finally:
        await finish(server)


@contextlib.asynccontextmanager
async def served(
    bundle: Path, folder: Path, *flags: str, target: str | None = None, connections: int = 1
) -> AsyncIterator[Served]:
    """A server that serves, and the shipped client to it."""
    async with (
        running(bundle, folder, *flags, target=target) as server,
        AsyncClient(server.target, connections=connections) as client,
    ):
        yield server, client


async def finish(server: Server) -> None:
    """Ends a server that may have ended already, with force where it must be."""
    if server.process.poll() is None:
        try:
            await server.end()
        except subprocess.TimeoutExpired:
            await server.end(signal.SIGKILL)


async def until(done: Callable[[], bool], problem: str) -> None:
    """Waits for something that the kernel knows, and ends the program with ``problem`` where it does not come."""
    end = time.monotonic() + _END_S
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(problem)
        await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listeners(port: int) -> int:
    """Sockets that listen on a port of this machine: of several workers, those that serve."""
    # gRPC listens on the IPv6 form of an IPv4 address.
    lines = (line for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:])
    fields = (line.split() for line in lines)
    return sum(one[3] == "0A" and int(one[1].rpartition(":")[2], 16) == port for one in fields)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_mb(pid: int) -> float:
    """Resident megabytes of a process."""
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def address_space(pid: int) -> int:
    """Bytes of addresses that a process has mapped."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """Open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    return sum(thread_cpu_s(pid).values())


def thread_cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds of each thread; the one with the process's number runs the event loop."""
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            found[int(folder.name)] = _TICK_S * (int(fields[11]) + int(fields[12]))
    return found

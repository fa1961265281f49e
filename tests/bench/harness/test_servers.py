"""Reservation of ports, and waiting for a server to start."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.harness.servers import free_port, wait_until_serving
from tests.support.demo import ROOT


@pytest.fixture
def candidate_ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The ports to try, in their order, instead of random ones."""
    ports: list[int] = []

    def sample(_: random.SystemRandom, population: Sequence[int], k: int) -> Sequence[int]:
        return ports

    with monkeypatch.context() as patch:
        patch.setattr(random.SystemRandom, "sample", sample)
        yield ports


def test_port_is_outside_the_range_of_outgoing_connections() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 20_000 <= free_port() < max(first, 32_768)


def test_port_is_reserved_until_its_process_ends(candidate_ports: list[int]) -> None:
    program = "from bench.harness.servers import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        theirs = int(other.stdout.readline())
        candidate_ports += [theirs, theirs + 1, theirs + 2]
        ours = free_port()
        assert theirs < ours
        # This process does not get it a second time either.
        candidate_ports[:] = [ours]
        with pytest.raises(RuntimeError, match="no port from 20000 to"):
            free_port()
        other.communicate("\n")
    # The port is free again once the process has ended.
    candidate_ports[:] = [theirs]
    assert free_port() == theirs


def test_port_with_a_listener_is_skipped(candidate_ports: list[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        candidate_ports += range(port, port + 50)
        assert free_port() > port


@pytest.mark.parametrize(
    ("program", "problem"),
    [("raise SystemExit(3)", "ended with code 3"), ("input()", r"is not ready after 0\.2 s")],
)
def test_failed_start_is_reported_with_the_log(program: str, problem: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("what is wrong")
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        timeout_s = 0.2 if program == "input()" else 60
        with pytest.raises(RuntimeError, match=problem + r", its health \[\]: what is wrong"):
            wait_until_serving(process, f"127.0.0.1:{free_port()}", log, timeout_s=timeout_s)
        process.communicate()

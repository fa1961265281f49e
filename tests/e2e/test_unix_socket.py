"""A server on a Unix socket."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest
from polyhead_client import Client

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def server(start: Start, demo_bundle: Path, path: Path) -> Server:
    server = start(demo_bundle, target=f"unix:{path}")
    server.wait_until_serving()
    return server


def answers(server: Server) -> bool:
    with Client(server.target) as client:
        return client.analyze(["one text"])[0].result is not None


def test_socket_is_private_and_removed_with_the_server(server: Server, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answers(server)
    assert server.stop() == 0
    assert not path.exists()


def test_second_server_is_refused_and_the_first_continues(
    server: Server, start: Start, demo_bundle: Path, path: Path
) -> None:
    second = start(demo_bundle, target=f"unix:{path}")
    assert second.process.wait(START_S) == 2
    assert f"cannot listen on unix:{path}; another server" in second.log.read_text()
    assert answers(server)


def test_socket_of_a_killed_server_is_replaced(server: Server, start: Start, demo_bundle: Path, path: Path) -> None:
    server.stop(signal.SIGKILL)
    assert path.exists()
    second = start(demo_bundle, target=f"unix:{path}")
    second.wait_until_serving()
    assert answers(second)


def test_file_that_is_not_a_socket_is_not_replaced(start: Start, demo_bundle: Path, path: Path) -> None:
    path.write_text("mine")
    server = start(demo_bundle, target=f"unix:{path}")
    assert server.process.wait(START_S) == 2
    assert "not a socket" in server.log.read_text()
    assert path.read_text() == "mine"


def test_workers_are_refused(start: Start, demo_bundle: Path, path: Path) -> None:
    server = start(demo_bundle, "--workers", "2", target=f"unix:{path}")
    assert server.process.wait(START_S) == 2
    assert f"--workers 2 cannot share --listen unix:{path}" in server.log.read_text()

"""A server on a Unix socket. tests/server/test_addresses.py has the addresses that are refused."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest
from polyhead_client import Client

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model


def answers(server: Server) -> bool:
    with Client(server.target) as client:
        return client.analyze(["one text"])[0].result is not None


def test_socket_is_private_to_one_server_and_ends_with_it(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = start(demo_bundle, target=f"unix:{path}")
    server.wait_until_serving()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answers(server)

    second = start(demo_bundle, target=f"unix:{path}")
    assert second.process.wait(START_S) == 2
    assert f"cannot listen on unix:{path}; another server" in second.log.read_text()
    assert answers(server)

    server.stop(signal.SIGKILL)
    assert path.exists()
    # What a killed server leaves is replaced.
    successor = start(demo_bundle, target=f"unix:{path}")
    successor.wait_until_serving()
    assert answers(successor)
    assert successor.stop() == 0
    assert not path.exists()

"""Loads that hang in a real server process: at its start, during a reload, and while it stops."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.polling import wait_until

from .conftest import START_S, Hang, Start

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


def test_server_whose_first_load_hangs_exits(start: Start, demo_bundle: Path, hang: Hang) -> None:
    hang.begin()
    server = start(demo_bundle, "--start-timeout-s", "3", environment=hang.environment)
    assert server.process.wait(START_S) == 1
    assert "loading took longer than 3 s (--start-timeout-s)" in server.log.read_text().splitlines()[-1]


def test_server_stops_while_its_first_load_hangs(start: Start, demo_bundle: Path, hang: Hang) -> None:
    hang.begin()
    server = start(demo_bundle, environment=hang.environment)
    wait_until(hang.has_begun, "the load hangs")
    assert server.stop() == 0


def test_server_stops_while_a_reload_hangs(start: Start, demo_bundle: Path, hang: Hang) -> None:
    server = start(demo_bundle, environment=hang.environment)
    server.wait_until_serving()
    hang.begin()
    server.process.send_signal(signal.SIGHUP)
    wait_until(hang.has_begun, "the load hangs")
    assert server.stop() == 0

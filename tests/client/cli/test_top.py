"""``polyhead top`` against a fake admin service, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client.cli.main import main
from polyhead_client.cli.rates import rates
from polyhead_client.cli.top import render, render_plain
from rich.console import Console

from tests.support.worker_stats import worker_stats

TIMEOUT_S = 60.0


def rendered(width: int, process_ids: tuple[int, ...] = (7, 8), **changed: Any) -> list[str]:
    """Renders two workers as lines of text."""
    before = [worker_stats(process_id, **changed) for process_id in process_ids]
    after = [worker_stats(process_id, 2, **changed) for process_id in process_ids]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render("unix:admin", rates(before, after), width))
    return capture.get().splitlines()


def cells(header: str, line: str) -> dict[str, str]:
    values = line.replace(" s ", "s ").replace(" ms", "ms").split()
    return dict(zip(header.split(), values, strict=True))


def test_table_has_a_line_for_each_worker_and_one_for_all() -> None:
    title, header, *lines, errors = rendered(160)
    assert (title.strip(), errors.strip()) == ("unix:admin", "errors: OVERLOADED 40.0/s")
    assert [line.split()[0] for line in lines] == ["7", "8", "all"]
    assert cells(header, lines[0]) == {
        "PID": "7",
        "MODEL": "demo",
        "STATE": "serving",
        "UP": "62s",
        "CALLS": "3",
        "QUEUE": "4",
        "WAIT": "250ms",
        "TEXTS/S": "100.0",
        "TOKENS/S": "1,000",
        "PADDING": "20.0%",
        "BUSY": "25%",
        "BATCH": "10.0",
        "ERRORS/S": "20.0",
    }


def test_narrow_table_fits_80_columns_with_large_numbers() -> None:
    _, header, *lines, _ = rendered(80, (4194303, 4194304), queued_items=99_999, requests_running=9_999)
    assert all(len(line) <= 80 for line in lines)
    assert "MODEL" not in header
    assert cells(header, lines[0])["QUEUE"] == "99,999"
    assert not any("…" in line for line in [header, *lines])


class FakeAdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Each answer is the state of a worker two seconds after the one before."""

    def __init__(self) -> None:
        self.calls = 0

    def GetStats(self, request: pb2.GetStatsRequest, context: Any) -> pb2.GetStatsResponse:  # noqa: N802
        self.calls += 1
        return pb2.GetStatsResponse(workers=[worker_stats(after_s=2 * self.calls)])


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAdminService]:
    admin = FakeAdminService()  # type: ignore[abstract]  # no other method is called
    server = grpc.server(ThreadPoolExecutor(2))
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    monkeypatch.setenv("POLYHEAD_ADMIN_TARGET", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield admin
    server.stop(None).wait()


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the wait between readings, and simulates Ctrl-C after ``count`` of them."""
    remaining = iter(range(count))

    def sleep(_: float) -> None:
        if next(remaining, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)


def test_once_reads_twice_and_prints_rates(admin: FakeAdminService, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(5, monkeypatch)
    result = CliRunner().invoke(main, ["top", "--once"])
    assert (result.exit_code, admin.calls) == (0, 2)
    assert "100.0" in result.stdout
    assert "\x1b" not in result.stdout


def test_output_to_a_pipe_is_a_plain_table_per_reading(
    admin: FakeAdminService, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(2, monkeypatch)
    result = CliRunner().invoke(main, ["top"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()].count("PID") == admin.calls == 3
    assert "\x1b" not in result.stdout


def test_json_is_a_line_for_each_worker_and_reading(admin: FakeAdminService, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(2, monkeypatch)
    result = CliRunner().invoke(main, ["top", "--json"])
    assert result.exit_code == 0
    items_per_s = [json.loads(line)["items_per_s"] for line in result.stdout.splitlines()]
    assert items_per_s == [None, 100.0, 100.0]


def test_forced_colors_do_not_turn_a_pipe_into_a_terminal(
    admin: FakeAdminService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    interrupt_after(2, monkeypatch)
    result = CliRunner().invoke(main, ["top"])
    assert [line.split()[0] for line in result.stdout.splitlines()].count("PID") == admin.calls == 3
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("without_rich")
@pytest.mark.parametrize("options", [["--json"], []])
def test_readings_are_printed_without_rich(
    admin: FakeAdminService, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    interrupt_after(2, monkeypatch)
    result = CliRunner().invoke(main, ["top", "--once", *options])
    assert (result.exit_code, result.stderr, admin.calls) == (0, "", 2)
    assert "100.0" in result.stdout


@pytest.mark.parametrize("width", [80, 160])
def test_plain_table_has_the_cells_of_the_live_one(width: int) -> None:
    before, after = ([worker_stats(pid, seconds, model_id="m" * 30) for pid in (7, 8)] for seconds in (0, 2))
    plain = render_plain("unix:admin", rates(before, after), width).splitlines()
    assert [line.split() for line in plain] == [line.split() for line in rendered(width, model_id="m" * 30)]
    assert (
        len(
            {line.index(rate) + len(rate) for line, rate in zip(plain[1:4], ("TEXTS/S", "100.0", "100.0"), strict=True)}
        )
        == 1
    )


def test_unreachable_admin_service_is_reported_with_a_hint() -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--target", "unix:/nowhere/admin.sock"])
    assert result.exit_code == 2
    assert "unix:/nowhere/admin.sock" in result.stderr
    assert "--admin-listen" in result.stderr


def test_terminal_shows_a_live_table_until_q_is_pressed(admin: FakeAdminService) -> None:
    terminal, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    command = [sys.executable, "-m", "polyhead_client", "top", "--interval", "0.2"]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = read_until(terminal, b"100.0")
        assert admin.calls >= 2
        os.write(terminal, b"xq")
        shown += read_until(terminal, b"\x1b[?1049l")  # leaves the alternate screen
        assert process.wait(TIMEOUT_S) == 0
    os.close(terminal)
    assert b"\x1b[?1049h" in shown
    assert b"q to quit" in shown


def read_until(terminal: int, expected: bytes) -> bytes:
    """Reads from the terminal until ``expected`` appears."""
    shown, end = b"", time.monotonic() + TIMEOUT_S
    while expected not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
    return shown

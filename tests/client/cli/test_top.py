"""``polyhead top`` against a fake admin service, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
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

from tests.support.polling import wait_until
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
    # The units of a duration follow a space.
    values = re.sub(r"(\d) (ms|s|min|h|d)\b(?: (\d+) (s|min|h)\b)?", r"\1\2\3\4", line).split()
    return dict(zip(header.split(), values, strict=True))


def test_table_has_a_line_for_each_worker_and_one_for_all() -> None:
    title, header, *lines, errors = rendered(160)
    assert (title.strip(), errors.strip()) == ("unix:admin", "errors: OVERLOADED 40.0/s")
    assert [line.split()[0] for line in lines] == ["7", "8", "all"]
    assert cells(header, lines[0]) == {
        "PID": "7",
        "MODEL": "demo",
        "STATE": "serving",
        "UP": "1min2s",
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


LARGE = {"queued_items": 12_345_678, "requests_running": 99_999, "items_total": 10**9, "tokens_total": 10**12}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 89, 98, 123, 160])
def test_table_fits_the_terminal_with_large_numbers(width: int) -> None:
    _, header, *lines, _ = rendered(width, (4194303, 4194304), model_id="m" * 30, **LARGE)
    assert max(map(len, [header, *lines])) <= width
    assert not any("…" in line for line in (header, *lines) if "MODEL" not in header)
    assert {"PID", "STATE"} <= set(header.split())
    shown = {80: "QUEUE", 89: "UP", 98: "PADDING", 123: "MODEL"}
    for least, column in shown.items():
        assert (column in header.split()) is (width >= least) or column == "QUEUE"
    if width >= 80:
        assert cells(header, lines[0])["QUEUE"] == "12.3M"


def test_workers_that_do_not_fit_the_terminal_are_counted() -> None:
    before = [worker_stats(process_id) for process_id in range(1, 65)]
    after = [worker_stats(process_id, 2) for process_id in range(1, 65)]
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render("unix:admin", rates(before, after), 80, 24))
    lines = capture.get().splitlines()
    assert len(lines) <= 23
    assert lines[-3].split()[0] == "all"
    assert "46 more workers do not fit" in lines[-2]


class FakeAdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Each answer is the state of a worker two seconds after the one before."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()

    def GetStats(self, request: pb2.GetStatsRequest, context: Any) -> pb2.GetStatsResponse:  # noqa: N802
        self.calls += 1
        self.hangs.wait(TIMEOUT_S)
        if self.fails:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return pb2.GetStatsResponse(workers=[worker_stats(after_s=2 * self.calls)])


@pytest.fixture
def service() -> FakeAdminService:
    return FakeAdminService()  # type: ignore[abstract]  # no other method is called


@pytest.fixture
def admin(service: FakeAdminService, target: str, monkeypatch: pytest.MonkeyPatch) -> FakeAdminService:
    monkeypatch.setenv("POLYHEAD_ADMIN_TARGET", target)
    return service


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


@pytest.mark.parametrize("interval", ["nan", "inf", "1e300", "0"])
def test_interval_out_of_range_is_a_usage_error(admin: FakeAdminService, interval: str) -> None:
    result = CliRunner().invoke(main, ["top", "--interval", interval])
    assert (result.exit_code, admin.calls) == (2, 0)
    assert "Invalid value for '--interval'" in result.stderr


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


class Terminal:
    """``polyhead top`` in a terminal of its own."""

    def __init__(self, *, stdin: int | None = None, rows: int = 24, columns: int = 80) -> None:
        self.fd, child = pty.openpty()
        self.resize(rows, columns)
        self.settings = termios.tcgetattr(self.fd)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
        command = [sys.executable, "-c", _IN_TERMINAL, "top", "--interval", "0.2"]
        self.process = subprocess.Popen(
            command, stdin=child if stdin is None else stdin, stdout=child, stderr=child, env=environment
        )
        self._child = child

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        os.close(self._child)
        os.close(self.fd)

    def left(self) -> bool:
        """Whether the command has left the alternate screen, and the settings are those from before its start."""
        read_until(self.fd, b"\x1b[?1049l")
        return self.process.wait(TIMEOUT_S) is not None and termios.tcgetattr(self.fd) == self.settings


# A session of its own makes the terminal of stdout that of the process, as in a shell. A background job of a shell
# ignores SIGINT, and its child processes inherit that.
_IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setsid()
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
from polyhead_client.cli.main import main
main(prog_name="polyhead")
"""


@pytest.fixture
def terminals() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(**options: Any) -> Terminal:
        opened.append(Terminal(**options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_terminal_shows_a_live_table_until_q_is_pressed(
    admin: FakeAdminService, terminals: Callable[..., Terminal]
) -> None:
    terminal = terminals()
    shown = read_until(terminal.fd, b"100.0")
    assert admin.calls >= 2
    os.write(terminal.fd, b"xq")
    assert terminal.left()
    assert terminal.process.returncode == 0
    assert b"\x1b[?1049h" in shown
    assert b"q to quit" in shown


@pytest.mark.usefixtures("admin")
def test_q_is_read_from_the_terminal_if_stdin_is_a_file(terminals: Callable[..., Terminal]) -> None:
    with open(os.devnull, "rb") as stdin:  # noqa: PTH123
        terminal = terminals(stdin=stdin.fileno())
    read_until(terminal.fd, b"q to quit")
    os.write(terminal.fd, b"q")
    assert terminal.left()
    assert terminal.process.returncode == 0


def test_q_ends_the_command_while_the_server_does_not_answer(
    admin: FakeAdminService, terminals: Callable[..., Terminal]
) -> None:
    terminal = terminals()
    read_until(terminal.fd, b"q to quit")
    admin.hangs.clear()
    calls = admin.calls
    wait_until(lambda: admin.calls > calls)
    os.write(terminal.fd, b"q")
    assert terminal.left()
    admin.hangs.set()


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_restores_the_terminal(terminals: Callable[..., Terminal], number: int) -> None:
    terminal = terminals()
    read_until(terminal.fd, b"q to quit")
    terminal.process.send_signal(number)
    assert terminal.left()
    assert terminal.process.returncode == (0 if number == signal.SIGINT else 128 + number)


@pytest.mark.usefixtures("admin")
def test_table_follows_the_size_of_the_terminal(terminals: Callable[..., Terminal]) -> None:
    terminal = terminals()
    assert b"MODEL" not in read_until(terminal.fd, b"q to quit")
    terminal.resize(24, 140)
    read_until(terminal.fd, b"MODEL")


def test_lost_server_restores_the_terminal_and_names_the_address(
    admin: FakeAdminService, terminals: Callable[..., Terminal]
) -> None:
    terminal = terminals()
    read_until(terminal.fd, b"q to quit")
    admin.fails = True
    assert terminal.left()
    assert terminal.process.returncode == 2


def read_until(terminal: int, expected: bytes) -> bytes:
    """Reads from the terminal until ``expected`` appears."""
    shown, end = b"", time.monotonic() + TIMEOUT_S
    while expected not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
    return shown

"""``polyhead top``, against an admin service that answers one reading after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client.cli.main import main
from polyhead_client.cli.top import rows_of, table


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def reading(process_id: int = 7, after_s: float = 0.0, threads: int = 2, **changed: Any) -> pb2.WorkerStats:
    """A worker that in each second computes 100 texts of 1,000 tokens and 250 of padding in 10 passes of 0.05 s."""
    stats = pb2.WorkerStats(
        process_id=process_id,
        model_id="demo",
        serving=True,
        up_time=seconds(60 + after_s),
        requests_running=3,
        queued_items=4,
        queued_tokens=40,
        expected_wait=seconds(0.25),
        items_total=int(100 * after_s) + 1000,
        tokens_total=int(1000 * after_s),
        padding_tokens_total=int(250 * after_s),
        batches_total=int(10 * after_s) + 5,
        compute_total=seconds(0.5 * after_s),
        item_errors_total={"OVERLOADED": int(20 * after_s), "DEADLINE_EXPIRED": 9},
        compute_threads=threads,
    )
    for name, value in changed.items():
        setattr(stats, name, value)
    return stats


def test_rates_are_those_between_two_readings() -> None:
    (row,) = rows_of([reading()], [reading(after_s=2)])
    assert (row.items_per_s, row.tokens_per_s, row.padding_share) == (100, 1000, 0.2)
    assert (row.items_per_pass, row.busy_share) == (10, 0.25)
    # EXPIRED stood at 9 before and stands at 9 now.
    assert row.refused_per_s == {"OVERLOADED": 20}


@pytest.mark.parametrize("before", [[], [reading(process_id=8)], [reading(after_s=90)]])
def test_worker_that_has_just_started_has_no_rates(before: list[pb2.WorkerStats]) -> None:
    (row,) = rows_of(before, [reading(after_s=2)])
    assert (row.items_per_s, row.tokens_per_s, row.busy_share, row.refused_per_s) == (None, None, None, {})
    assert (row.calls, row.queued_items, row.expected_wait_s) == (3, 4, 0.25)


def test_idle_worker_has_rates_of_zero_and_no_averages() -> None:
    idle = reading()
    idle.up_time.seconds += 5
    (row,) = rows_of([reading()], [idle])
    assert (row.items_per_s, row.busy_share, row.padding_share, row.items_per_pass) == (0, 0, None, None)


def test_several_workers_are_added_up_by_what_they_computed() -> None:
    idle = reading(8, threads=6)
    later = reading(8, threads=6, serving=False)
    later.up_time.seconds += 2
    *_, total = rows_of([reading(7), idle], [reading(7, 2), later])
    assert (total.process_id, total.calls, total.serving) == (0, 6, False)
    assert (total.items_per_s, total.padding_share, total.items_per_pass) == (100, 0.2, 10)
    assert total.busy_share == 0.25 * 2 / 8


def test_table_has_a_line_for_each_worker_and_one_for_all() -> None:
    before, after = [reading(7), reading(8)], [reading(7, 2), reading(8, 2)]
    title, header, *lines, refused = table("unix:admin", rows_of(before, after)).splitlines()
    assert (title, refused) == ("unix:admin", "refused: OVERLOADED 40.0/s")
    assert [line.split()[0] for line in lines] == ["7", "8", "all"]
    assert dict(zip(header.split(), lines[0].replace(" s ", "s ").replace(" ms", "ms").split(), strict=True)) == {
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
        "A/PASS": "10.0",
        "REFUSED/S": "20.0",
    }


class Admin(admin_service_pb2_grpc.AdminServiceServicer):
    """Answers each time what a worker stands at two seconds later."""

    def __init__(self) -> None:
        self.asked = 0

    def GetStats(self, request: pb2.GetStatsRequest, context: Any) -> pb2.GetStatsResponse:  # noqa: N802
        self.asked += 1
        return pb2.GetStatsResponse(workers=[reading(after_s=2 * self.asked)])


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    admin = Admin()  # type: ignore[abstract]  # nothing else is asked
    server = grpc.server(ThreadPoolExecutor(2))
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    monkeypatch.setenv("POLYHEAD_ADMIN_TARGET", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    yield admin
    server.stop(None).wait()


def leave_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no time pass between readings, and Ctrl-C come after so many of them."""
    left = iter(range(count))

    def sleep(_: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)


def test_once_reads_twice_and_prints_rates(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_after(5, monkeypatch)
    result = CliRunner().invoke(main, ["top", "--once"])
    assert (result.exit_code, admin.asked) == (0, 2)
    assert "100.0" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_is_a_line_for_each_worker_and_reading(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_after(2, monkeypatch)
    result = CliRunner().invoke(main, ["top", "--json"])
    assert result.exit_code == 0
    rates = [json.loads(line)["items_per_s"] for line in result.stdout.splitlines()]
    assert rates == [None, 100.0, 100.0]


def test_server_without_an_admin_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--target", "unix:/nowhere/admin.sock"])
    assert result.exit_code == 2
    assert "unix:/nowhere/admin.sock" in result.stderr
    assert "--admin-listen" in result.stderr

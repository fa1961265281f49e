"""Accepted work when a process ends: it is answered, or the exit code is 1."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead_client import Client

from tests.support.polling import wait_until
from tests.support.worker_load import NOT_ACCEPTED, Load, alive, answered, serving, workers_of

from .conftest import START_S, Hang, Server, Start

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores"),
]


@pytest.fixture
def server(start: Start, demo_bundle: Path) -> Server:
    server = start(demo_bundle, "--workers", "2")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    return server


def test_draining_under_load_loses_no_accepted_work(server: Server) -> None:
    with Load(server.target) as load:
        load.wait_for(200)
        assert server.stop() == 0
    log = server.log.read_text()
    assert "cut off" not in log
    assert log.count("lifecycle.server: stopped") == 2
    assert set(load.answers) == {"result"}
    assert set(load.ends) <= NOT_ACCEPTED
    # The server ended the streams, after their last answer.
    assert load.ends["DRAINING"] >= 1


def test_killing_under_load_loses_accepted_work(server: Server) -> None:
    """Control: streams that are cut off end differently from drained ones."""
    with Load(server.target) as load:
        load.wait_for(200)
        for pid in workers_of(server):
            os.kill(pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping 2 workers" in server.log.read_text(), "the first signal is handled")
        assert server.stop() == 1
    assert load.ends["DRAINING"] == 0
    assert server.log.read_text().count("work was cut off") == 2


def test_worker_that_hangs_is_killed_after_its_grace_period(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2", "--drain-timeout-s", "1")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    stopped = workers_of(server)[0]
    os.kill(stopped, signal.SIGSTOP)
    assert server.stop() == 1
    log = server.log.read_text()
    assert f"process {stopped} does not end; killing it" in log
    assert log.count("work was cut off") == 1


def test_old_workers_are_replaced_without_client_errors(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2", "--max-worker-age-s", "4", "--drain-delay-s", "0.5")
    wait_until(lambda: serving(server) == 2, "two workers serve")
    before = set(workers_of(server))
    with Load(server.target, pause_s=0.05) as load, Client(server.target) as client:
        answers = 0
        while before & set(workers_of(server)) or answers < 100:
            answers += len([answer for answer in client.analyze(["one text", "another"]) if answer.unwrap()])
        load.wait_for(load.answers["result"] + 100)
    assert server.stop() == 0
    assert set(load.answers) == {"result"}
    # Control: calls of plain stubs, under the same load, do end.
    assert load.ends["DRAINING"] >= 1
    assert set(load.ends) <= NOT_ACCEPTED
    assert "cut off" not in server.log.read_text()
    assert not any(map(alive, before))


def test_second_signal_ends_a_single_process_at_once(start: Start, demo_bundle: Path, hang: Hang) -> None:
    server = start(demo_bundle, environment=hang.environment)
    server.wait_until_serving()
    hang.begin()
    with Load(server.target):
        wait_until(hang.has_begun, "a batch hangs")
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "draining" in server.log.read_text(), "the first signal is handled")
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 1
    # Far below the drain timeout of 30 s.
    assert time.monotonic() - began < 15
    (calls,) = re.findall(r"cut off: (\d+) calls, \d+ texts in the queue", server.log.read_text())
    assert int(calls) >= 1


@pytest.mark.parametrize("workers", [1, 2])
def test_work_that_takes_too_long_is_cut_off_and_counted(
    start: Start, demo_bundle: Path, hang: Hang, workers: int
) -> None:
    flags = ("--workers", str(workers), "--drain-timeout-s", "1")
    server = start(demo_bundle, *flags, environment=hang.environment)
    wait_until(lambda: serving(server) == workers, "all workers serve") if workers > 1 else server.wait_until_serving()
    hang.begin()
    with Load(server.target):
        wait_until(hang.has_begun, "a batch hangs")
        assert server.stop() == 1
    assert "cut off: " in server.log.read_text()


def test_slow_work_is_finished(start: Start, demo_bundle: Path, hang: Hang) -> None:
    """Control for the two tests above: the same server and signal, but the engine continues."""
    server = start(demo_bundle, environment=hang.environment)
    server.wait_until_serving()
    hang.begin()
    with Load(server.target) as load:
        wait_until(hang.has_begun, "a batch hangs")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log.read_text(), "the signal is handled")
        hang.end()
        assert server.process.wait(START_S) == 0
    assert set(load.answers) == {"result"}
    assert set(load.ends) <= NOT_ACCEPTED
    assert load.ends["DRAINING"] >= 1


def test_engine_that_hangs_permanently_ends_the_process(start: Start, demo_bundle: Path, hang: Hang) -> None:
    server = start(demo_bundle, "--batch-timeout-s", "5", "--drain-timeout-s", "1", environment=hang.environment)
    server.wait_until_serving()
    assert answered(server)
    hang.begin()
    with Load(server.target):
        wait_until(hang.has_begun, "a batch hangs")
        # Without a signal.
        assert server.process.wait(START_S) == 1
    assert server.log.read_text().count("the engine failed permanently: a batch has been running for") == 1


def test_calls_are_answered_during_the_drain_delay(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--drain-delay-s", "30")
    server.wait_until_serving()
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        statuses = stub.Watch(health_pb2.HealthCheckRequest(), timeout=START_S)
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert answered(server)
        # The second signal: nothing is running, so nothing is cut off.
        assert server.stop() == 0

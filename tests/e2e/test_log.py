"""The log of a real server process: what strangers can put into it, and what it can hold up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.security import api_keys

from bench.harness.servers import free_port
from tests.support.demo import BIN
from tests.support.polling import wait_until
from tests.support.raw_http2 import RawConnection

from .conftest import START_S, Start

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

ANALYZE = "/polyhead.v1.InferenceService/Analyze"
ODD_HEADERS = [(b"k%d" % number, b"\x80\x1b[31mERROR\n") for number in range(60)]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "keys.toml"
    return path, api_keys.create(path, "shop", ["infer"], None)


def analyze(target: str, key: str) -> int:
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="a text")])
        metadata = (("authorization", f"Bearer {key}"),)
        return len(stub.Analyze(request, timeout=30, metadata=metadata, wait_for_ready=True).answers)


def wait_until_serving(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()

        def serves() -> bool:
            status = stub.Check(request, timeout=START_S, wait_for_ready=True).status
            return bool(status == health_pb2.HealthCheckResponse.SERVING)

        wait_until(serves, "the server serves")


def test_metadata_of_strangers_does_not_reach_the_log(start: Start, demo_bundle: Path, keys: tuple[Path, str]) -> None:
    path, key = keys
    server = start(demo_bundle, "--api-keys", str(path), "--log-format", "json", "--access-log", "info")
    server.wait_until_serving()
    before = len(server.log.read_text())
    with RawConnection(server.target) as connection:
        connection.call(ANALYZE, [(b"authorization", f"Bearer {key}".encode() + b"\xff")])
        for _ in range(200):
            connection.call(ANALYZE, ODD_HEADERS)
        connection.call(f"/no.Such/\x1b[31m{key}")
    assert analyze(server.target, key) == 1
    assert server.stop() == 0
    log = server.log.read_text()
    # The control: the calls were noticed.
    assert "UnicodeDecodeError" in log
    assert "no valid API key" in log
    assert key not in log.replace(f"31m{key}", "")
    assert "\x1b" not in log
    assert "\\x1b[31mERROR" not in log
    # 202 calls with 60 odd headers each: without a limit more than 5 MB.
    assert len(log) - before < 60_000
    assert all(isinstance(json.loads(line), dict) for line in log.splitlines())


@pytest.fixture
def unread_pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)


def fill(write: int) -> None:
    """Fills a pipe up to the last byte."""
    os.set_blocking(write, False)
    for size in (65536, 1):
        while True:
            try:
                os.write(write, b"x" * size)
            except BlockingIOError:
                break
    os.set_blocking(write, True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores")
def test_log_that_nobody_reads_holds_up_no_workers(
    demo_bundle: Path, keys: tuple[Path, str], unread_pipe: tuple[int, int]
) -> None:
    (path, key), (read, write) = keys, unread_pipe
    fill(write)
    target = f"127.0.0.1:{free_port()}"
    flags = ("--listen", target, "--api-keys", str(path), "--access-log", "info", "--drain-timeout-s", "5")
    command = [str(BIN / "polyhead-serve"), str(demo_bundle), "--workers", "2", *flags]
    process = subprocess.Popen(command, stderr=write)
    os.close(write)
    try:
        wait_until_serving(target)
        for _ in range(20):
            assert analyze(target, key) == 1
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(60) == 0
        # The control: nobody has read the log, and it is still full.
        assert os.read(read, 1000) == b"x" * 1000
        assert time.monotonic() - began < 20
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_dropped_lines_are_counted_and_stated_once_the_log_is_read(
    demo_bundle: Path, keys: tuple[Path, str], unread_pipe: tuple[int, int]
) -> None:
    (path, key), (read, write) = keys, unread_pipe
    target, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    flags = ("--listen", target, "--api-keys", str(path), "--access-log", "info", "--metrics-listen", metrics)
    process = subprocess.Popen([str(BIN / "polyhead-serve"), str(demo_bundle), *flags], stderr=write)
    os.close(write)
    log = b""
    try:
        wait_until_serving(target)
        analyze(target, key)
        with grpc.insecure_channel(target) as channel:
            stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
            metadata = (("authorization", f"Bearer {key}"), ("x-request-id", "r" * 128))
            # More than 280 bytes a line, against 64 kB of the pipe and 1 MiB that may wait.
            for _ in range(50):
                calls = [stub.Analyze.future(pb2.AnalyzeRequest(), timeout=30, metadata=metadata) for _ in range(100)]
                for call in calls:
                    call.result()
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=START_S) as response:
            counted = re.search(rb'polyhead_dropped_log_lines_total\{reason="queue_full"\} ([\d.]+)', response.read())
            assert counted
            assert float(counted[1]) > 100
        chunks: list[bytes] = []
        reading = threading.Thread(target=_collect, args=(read, chunks))
        reading.start()
        wait_until(lambda: b"log lines were dropped" in b"".join(chunks), "the log states what was dropped")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        reading.join(60)
        log = b"".join(chunks)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    (dropped,) = re.findall(rb"([\d,]+) log lines were dropped while standard error was not read", log)
    written = len(re.findall(rb" Analyze [A-Z_]+, items: ", log))
    assert written + int(dropped.replace(b",", b"")) == 5001


def _collect(descriptor: int, chunks: list[bytes]) -> None:
    while data := os.read(descriptor, 65536):
        chunks.append(data)


def test_grpc_itself_writes_nothing(start: Start, demo_bundle: Path) -> None:
    """Its core reports a port that is taken with a line of its own unless it is configured not to."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(demo_bundle, "--log-format", "json", target=f"127.0.0.1:{taken.getsockname()[1]}")
        assert server.process.wait(START_S) == 2
    lines = server.log.read_text().splitlines()
    assert "cannot listen on" in json.loads(lines[-1])["message"]
    assert all(json.loads(line) for line in lines)

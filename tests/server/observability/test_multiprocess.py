"""Metrics of several workers, written by real processes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.observability.multiprocess import WorkerMetrics

PROGRAM = """
import sys
from polyhead_server.observability.metrics import Metrics
metrics = Metrics()
metrics.set_requests_running(1)
for size in map(int, sys.argv[1:]):
    metrics.observe_request_bytes(size)
    metrics.observe_request("Analyze", "OK", size / 1000, unary=True)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Callable[..., int]:
    """Runs a worker that counts requests of some sizes; returns its process id."""

    def run(*sizes: int) -> int:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, sizes)], env=environment)
        assert process.wait(60) == 0
        return process.pid

    return run


def samples(metrics: WorkerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.collect()
        for sample in family.samples
        # Gauges show live workers only.
        if family.type != "gauge"
    }


def test_counts_of_dead_workers_are_kept_without_their_files(worker: Callable[..., int], tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path)
    dead, live = [worker(10, 70_000), worker(10), worker(500)], worker(20)
    before = samples(metrics)
    assert before["polyhead_requests_total", (("code", "OK"), ("method", "Analyze"))] == 5
    assert before["polyhead_request_bytes_sum", ()] == 70_540
    for pid in dead:
        metrics.merge_dead_worker(pid)
        assert samples(metrics) == before
    remaining = {path.name for path in tmp_path.glob("*.db")}
    assert remaining >= {"counter_dead.db", "histogram_dead.db", f"counter_{live}.db", f"histogram_{live}.db"}
    assert not any(str(pid) in name for pid in dead for name in remaining)


def test_unreadable_file_is_dropped(
    worker: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is killed while it creates a file leaves one on which every scrape would fail."""
    metrics = WorkerMetrics(tmp_path)
    worker(10)
    before = samples(metrics)
    (tmp_path / "counter_1.db").touch()
    with pytest.raises(struct.error):
        samples(metrics)
    metrics.merge_dead_worker(1)
    assert samples(metrics) == before
    assert "the metrics of process 1 are lost" in caplog.text


def test_worker_without_files_is_merged_without_error(tmp_path: Path) -> None:
    WorkerMetrics(tmp_path).merge_dead_worker(1)
    assert not list(tmp_path.iterdir())

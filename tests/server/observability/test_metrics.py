from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_server.inference.model import Model
from polyhead_server.observability.metrics import Metrics, WorkerMetrics


async def test_lag_is_what_a_timer_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    late_s = iter([0.0, 0.3])

    async def sleep(wanted_s: float) -> None:
        nonlocal now
        now += wanted_s + next(late_s)

    metrics = Metrics()
    # The iterator's end, inside of a coroutine.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await metrics.watch(lambda: None, sleep)
    assert metrics.value("polyhead_event_loop_lag_seconds_count") == 2
    assert metrics.value("polyhead_event_loop_lag_seconds_sum") == pytest.approx(0.3)
    assert metrics.value("polyhead_event_loop_lag_seconds_bucket", le="0.2") == 1


def test_process_is_measured_where_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Metrics().value("process_resident_memory_bytes") > 0
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "somewhere")
    assert Metrics().value("process_resident_memory_bytes") == 0


def test_counters_that_alerts_look_at_begin_at_zero() -> None:
    metrics = Metrics()
    metrics.expect_calls(["Analyze"])
    for name, labels in (
        ("polyhead_reloads_total", {"outcome": "refused"}),
        ("polyhead_item_errors_total", {"reason": "INTERNAL"}),
        ("polyhead_requests_total", {"method": "Analyze", "code": "INTERNAL"}),
    ):
        assert metrics.registry.get_sample_value(name, labels) == 0
    # An operator is shown only what was refused.
    assert metrics.refusals() == {}


def test_version_is_told(model: Model) -> None:
    (sample,) = [
        sample
        for family in Metrics().registry.collect()
        for sample in family.samples
        if sample.name == "polyhead_build_info"
    ]
    assert sample.value == 1
    assert sample.labels["version"]


COUNTS = """
import sys
from polyhead_server.metrics import Metrics
metrics = Metrics()
metrics.calls(1)
for size in map(int, sys.argv[1:]):
    metrics.requested(size)
    metrics.called("Analyze", "OK", size / 1000, unary=True)
"""


@pytest.fixture
def count(tmp_path: Path) -> Callable[..., int]:
    """Lets a worker count requests of some sizes; returns its process id."""

    def run(*sizes: int) -> int:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", COUNTS, *map(str, sizes)], env=environment)
        assert process.wait(60) == 0
        return process.pid

    return run


def samples(metrics: WorkerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.collect()
        for sample in family.samples
        # Of those that live.
        if family.type != "gauge"
    }


def test_what_the_dead_counted_is_kept_without_their_files(count: Callable[..., int], tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path)
    dead, lives = [count(10, 70_000), count(10), count(500)], count(20)
    before = samples(metrics)
    assert before["polyhead_requests_total", (("code", "OK"), ("method", "Analyze"))] == 5
    assert before["polyhead_request_bytes_sum", ()] == 70_540
    for pid in dead:
        metrics.bury(pid)
        assert samples(metrics) == before
    left = {path.name for path in tmp_path.glob("*.db")}
    assert left >= {"counter_dead.db", "histogram_dead.db", f"counter_{lives}.db", f"histogram_{lives}.db"}
    assert not any(str(pid) in name for pid in dead for name in left)


def test_file_that_cannot_be_read_is_not_kept(
    count: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a worker that was killed while it made it: every scrape would stumble over it."""
    metrics = WorkerMetrics(tmp_path)
    count(10)
    before = samples(metrics)
    (tmp_path / "counter_1.db").touch()
    with pytest.raises(struct.error):
        samples(metrics)
    metrics.bury(1)
    assert samples(metrics) == before
    assert "what process 1 counted is lost" in caplog.text


def test_who_has_no_files_is_buried_all_the_same(tmp_path: Path) -> None:
    WorkerMetrics(tmp_path).bury(1)
    assert not list(tmp_path.iterdir())

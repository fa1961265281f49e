from __future__ import annotations

import time

import pytest
from polyhead_server.loading import Model
from polyhead_server.metrics import Metrics


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
        ("polyhead_refused_items_total", {"reason": "INTERNAL"}),
        ("polyhead_calls_total", {"method": "Analyze", "code": "INTERNAL"}),
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

"""The metrics of one server process."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from polyhead_server.errors import ExpiredError
from polyhead_server.inference.executor import BatchOutcome
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Batch, QueueState
from polyhead_server.observability.metric_factories import BatchHistogram, Instruments
from polyhead_server.observability.metrics import Metrics
from prometheus_client import Histogram

from tests.support.queue_entries import entry


async def test_event_loop_lag_is_the_delay_of_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    delays_s = iter([0.0, 0.3])

    async def sleep(duration_s: float) -> None:
        nonlocal now
        now += duration_s + next(delays_s)

    metrics = Metrics()
    # The end of the iterator surfaces as RuntimeError inside a coroutine.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await metrics.sample(lambda: None, sleep)
    assert metrics.value("polyhead_event_loop_lag_seconds_count") == 2
    assert metrics.value("polyhead_event_loop_lag_seconds_sum") == pytest.approx(0.3)
    assert metrics.value("polyhead_event_loop_lag_seconds_bucket", le="0.2") == 1


async def test_tasks_of_the_event_loop_are_counted_every_tenth_sample() -> None:
    counted = []
    idle: list[asyncio.Task[None]] = []

    async def sleep(_: float) -> None:
        counted.append(metrics.value("polyhead_event_loop_tasks"))
        if len(counted) == 11:
            raise RuntimeError("enough")
        idle.append(asyncio.create_task(asyncio.sleep(60)))

    metrics = Metrics()
    with pytest.raises(RuntimeError, match="enough"):
        await metrics.sample(lambda: None, sleep)
    for task in idle:
        task.cancel()
    assert counted[0] >= 1
    assert [tasks - counted[0] for tasks in counted] == [0] * 10 + [10]


async def test_queue_seconds_observes_each_item_of_a_batch() -> None:
    entries = [entry(3) for _ in range(3)]
    for one, tokenized_s in zip(entries, (10.0, 10.0, 13.0), strict=True):
        one.tokenized_ns = int(tokenized_s * 1e9)
    metrics = Metrics()
    # The batch started at 13.5 s.
    metrics.observe_batches([BatchOutcome(Batch(entries, []), [], 13_500_000_000, 0.5, failed=False)])
    assert metrics.value("polyhead_queue_seconds_count") == 3
    assert metrics.value("polyhead_queue_seconds_sum") == pytest.approx(3.5 + 3.5 + 0.5)
    assert metrics.value("polyhead_queue_seconds_bucket", le="0.5") == 1
    assert metrics.value("polyhead_items_total") == 3


async def test_batches_that_finished_together_count_like_one_after_the_other() -> None:
    batches = [Batch([entry(3), entry(5)], []), Batch([entry(4)], [])]
    finished = [
        BatchOutcome(batch, [], 10**9, duration_s, failed=False)
        for batch, duration_s in zip(batches, (0.5, 2.0), strict=True)
    ]
    together, one_by_one = Metrics(), Metrics()
    together.observe_batches(finished)
    for done in finished:
        one_by_one.observe_batches([done])
    assert together.value("polyhead_items_total") == 3
    assert together.value("polyhead_padding_tokens_total") == 2
    assert together.value("polyhead_batch_duration_seconds_sum") == 2.5
    for name in ("polyhead_batch_size", "polyhead_batch_duration_seconds", "polyhead_queue_seconds"):
        for bound in ("1.0", "2.0", "+Inf"):
            bucket = f"{name}_bucket"
            assert together.value(bucket, le=bound) == one_by_one.value(bucket, le=bound) > 0


def test_observing_many_values_equals_observing_each() -> None:
    amounts = [0.0, 0.1, 0.1000001, 0.5, 1.0, 7.0, 0.5]
    at_once = Instruments().histogram("x_seconds", "X.", buckets=(0.1, 0.5, 1))
    at_once.observe_many(amounts)
    one_by_one = BatchHistogram("x_seconds", "X.", buckets=(0.1, 0.5, 1), registry=None)
    of_library = Histogram("x_seconds", "X.", buckets=(0.1, 0.5, 1), registry=None)
    for amount in amounts:
        one_by_one.observe(amount)
        of_library.observe(amount)
    assert sample_values(of_library)["_count", ""] == 7
    for histogram in (at_once, one_by_one):
        assert sample_values(histogram) == pytest.approx(sample_values(of_library))


def sample_values(histogram: Histogram) -> dict[tuple[str, str], float]:
    """Returns the value of each sample, except the time of creation, by the end of its name and its bucket."""
    return {
        (sample.name.removeprefix("x_seconds"), sample.labels.get("le", "")): sample.value
        for metric in histogram.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_process_metrics_require_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Metrics().value("process_resident_memory_bytes") > 0
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "somewhere")
    assert Metrics().value("process_resident_memory_bytes") == 0


def test_counters_that_alerts_watch_start_at_zero() -> None:
    metrics = Metrics()
    metrics.initialize_requests(["Analyze"])
    for name, labels in (
        ("polyhead_reloads_total", {"outcome": "refused"}),
        ("polyhead_item_errors_total", {"reason": "INTERNAL"}),
        ("polyhead_requests_total", {"method": "Analyze", "code": "INTERNAL"}),
    ):
        assert metrics.registry.get_sample_value(name, labels) == 0
    # Reasons without errors are not reported to operators.
    assert metrics.item_errors() == {}


def test_item_errors_are_counted_by_reason() -> None:
    metrics = Metrics()
    metrics.count_outcomes([ExpiredError(), ExpiredError()])
    assert metrics.item_errors() == {"DEADLINE_EXPIRED": 2}


def test_version_is_reported(model: Model) -> None:
    (sample,) = [
        sample
        for family in Metrics().registry.collect()
        for sample in family.samples
        if sample.name == "polyhead_build_info"
    ]
    assert sample.value == 1
    assert sample.labels["version"]


async def test_several_models_have_series_of_their_own_and_share_those_of_the_process() -> None:
    first = Metrics("a")
    second = Metrics("b", first)
    for metrics, count in ((first, 1), (second, 2)):
        metrics.observe_batches([BatchOutcome(Batch([entry(3)] * count, []), [], 0, 0.5, failed=False)])
        metrics.count_outcomes([ExpiredError()] * count)
        metrics.count_reload("success")
    for metrics, model, count in ((first, "a", 1), (second, "b", 2)):
        assert metrics.value("polyhead_items_total") == metrics.value("polyhead_items_total", model=model) == count
        assert metrics.value("polyhead_queue_seconds_count") == count
        assert metrics.value("polyhead_reloads_total", outcome="success") == 1
        assert metrics.item_errors() == {"DEADLINE_EXPIRED": count}
    second.set_requests_running(5)
    assert first.value("polyhead_requests_running") == 5
    assert first.registry is second.registry


def test_only_model_has_no_label() -> None:
    labels = {label for description in Metrics().instruments.descriptions for label in description.labels}
    assert "model" not in labels


async def test_queue_of_a_second_model_is_sampled_without_the_event_loop() -> None:
    async def sleep(_: float) -> None:
        next(turns)

    turns = iter([0])
    metrics = Metrics("b", Metrics("a"))
    queue = QueueState(3, 30, 30, 1.5, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await metrics.sample_queue(lambda: cast(Any, SimpleNamespace(queue_state=lambda: queue)), sleep)
    assert metrics.value("polyhead_queued_items", model="b") == 3
    assert metrics.value("polyhead_event_loop_lag_seconds_count") == 0


def test_models_on_one_device_share_its_threads(model: Model) -> None:
    first = Metrics("a")
    second = Metrics("b", first)
    first.set_runtime(model, 2)
    second.set_runtime(model, 2)
    assert first.value("polyhead_compute_threads") == 2

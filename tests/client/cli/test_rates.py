from __future__ import annotations

import pytest
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead_client.cli.rates import rates

from tests.support.worker_stats import worker_stats


def test_rates_are_differences_between_two_readings() -> None:
    (row,) = rates([worker_stats()], [worker_stats(after_s=2)])
    assert (row.items_per_s, row.tokens_per_s, row.padding_share) == (100, 1000, 0.2)
    assert (row.items_per_batch, row.busy_share) == (10, 0.25)
    # DEADLINE_EXPIRED is 9 in both readings.
    assert row.item_errors_per_s == {"OVERLOADED": 20}


@pytest.mark.parametrize("before", [[], [worker_stats(process_id=8)], [worker_stats(after_s=90)]])
def test_worker_without_an_earlier_reading_has_no_rates(before: list[pb2.WorkerStats]) -> None:
    (row,) = rates(before, [worker_stats(after_s=2)])
    assert (row.items_per_s, row.tokens_per_s, row.busy_share, row.item_errors_per_s) == (None, None, None, {})
    assert (row.calls, row.queued_items, row.expected_wait_s) == (3, 4, 0.25)


def test_idle_worker_has_rates_of_zero_and_no_averages() -> None:
    idle = worker_stats()
    idle.up_time.seconds += 5
    (row,) = rates([worker_stats()], [idle])
    assert (row.items_per_s, row.busy_share, row.padding_share, row.items_per_batch) == (0, 0, None, None)


def test_total_is_weighted_by_computed_work() -> None:
    idle = worker_stats(8, threads=6)
    later = worker_stats(8, threads=6, serving=False)
    later.up_time.seconds += 2
    *_, total = rates([worker_stats(7), idle], [worker_stats(7, 2), later])
    assert (total.process_id, total.calls, total.serving) == (0, 6, False)
    assert (total.items_per_s, total.padding_share, total.items_per_batch) == (100, 0.2, 10)
    assert total.busy_share == 0.25 * 2 / 8


def test_models_of_one_worker_have_rows_of_their_own() -> None:
    def reading(after_s: float) -> list[pb2.WorkerStats]:
        return [worker_stats(7, after_s, model_name=name) for name in ("tickets", "reviews")]

    first, second, total = rates(reading(0), reading(2))
    assert [(row.process_id, row.model_name) for row in (first, second)] == [(7, "tickets"), (7, "reviews")]
    assert first.items_per_s == second.items_per_s == 100
    # Its calls and threads are those of both models.
    assert (total.calls, total.items_per_s, total.busy_share) == (3, 200, 2 * 0.5 / 2)
    assert total.model_name == ""


def test_name_of_the_only_model_is_not_shown() -> None:
    rows = rates([], [worker_stats(7, model_name="demo"), worker_stats(8, model_name="demo")])
    assert {row.model_name for row in rows} == {""}

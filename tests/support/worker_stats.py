"""Statistics of a worker with constant load."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2


def seconds(value: float) -> Duration:
    """Returns a protobuf duration."""
    duration = Duration()
    duration.FromNanoseconds(round(value * 1e9))
    return duration


def worker_stats(process_id: int = 7, after_s: float = 0.0, threads: int = 2, **changed: Any) -> pb2.WorkerStats:
    """Returns the statistics after ``after_s`` seconds of load.

    In each second the worker computes 10 batches of 0.05 s, with 100 texts, 1,000 tokens and 250 tokens of padding.
    """
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

"""The statistics of one worker, as ``polyhead.v1.WorkerStats`` reports them."""

from __future__ import annotations

import os
from typing import Protocol

from polyhead_server.inference.model import Model
from polyhead_server.inference.types import QueueState
from polyhead_server.observability.metrics import Metrics
from polyhead_server.process_reports import WorkerStats


class Computing(Protocol):
    """What computes: a pipeline, or the engine process of fronts."""

    @property
    def model(self) -> Model:
        """The model that computes."""

    @property
    def threads(self) -> int:
        """Number of compute threads."""

    def queue_state(self) -> QueueState:
        """Returns what waits."""


def collect(
    pipeline: Computing, metrics: Metrics, *, name: str, serving: bool, up_time_s: float, requests_running: int
) -> WorkerStats:
    """Returns the current statistics.

    Args:
        pipeline: The one that serves now.
        metrics: Counters since the start of the worker.
        name: The model's name in requests.
        serving: Whether new calls are accepted.
        up_time_s: Seconds since the worker started.
        requests_running: Calls in progress.
    """
    value, queue = metrics.value, pipeline.queue_state()
    return WorkerStats(
        process_id=os.getpid(),
        model_id=pipeline.model.source.model_id,
        serving=serving,
        up_time=up_time_s,
        requests_running=requests_running,
        queued_items=queue.items,
        queued_tokens=queue.tokens,
        expected_wait=queue.expected_wait_s,
        items_total=int(value("polyhead_items_total")),
        tokens_total=int(value("polyhead_tokens_total")),
        padding_tokens_total=int(value("polyhead_padding_tokens_total")),
        batches_total=int(value("polyhead_batch_duration_seconds_count")),
        compute_total=value("polyhead_batch_duration_seconds_sum"),
        item_errors_total=metrics.item_errors(),
        compute_threads=pipeline.threads,
        model_name=name,
    )

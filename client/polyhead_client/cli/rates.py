"""Rates of each worker between two readings of its counters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2

from .printable import printable

# Fields that are added up to a total of all workers.
_SUMMED_FIELDS = (
    "queued_items",
    "queued_tokens",
    "items_total",
    "tokens_total",
    "padding_tokens_total",
    "batches_total",
)
# Fields that the models of a worker share.
_SHARED_FIELDS = ("requests_running", "compute_threads")


@dataclass(frozen=True)
class WorkerRates:
    """State and rates of a worker, or of one of its models. Rates are None until there are two readings of it.

    Attributes:
        process_id: Process id of the worker; 0 for the total of all workers.
        model_id: Id of the loaded bundle.
        model_name: Name of the model if the server has several; otherwise empty.
        serving: Whether its health service reports SERVING.
        up_s: Seconds since the worker started to serve.
        calls: Running calls.
        queued_items: Texts in the queue.
        queued_tokens: Tokens in the queue.
        expected_wait_s: Expected queueing time of a text that arrives now.
        items_per_s: Texts computed per second.
        tokens_per_s: Tokens computed per second, without padding.
        padding_share: Share of padding in the tokens computed; None if none were.
        items_per_batch: Mean number of texts per batch; None without a batch.
        busy_share: Share of the compute threads' time that batches took.
        item_errors_per_s: Items answered with an error per second, by reason; reasons without any are left out.
    """

    process_id: int
    model_id: str
    serving: bool
    up_s: float
    calls: int
    queued_items: int
    queued_tokens: int
    expected_wait_s: float
    items_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_share: float | None = None
    items_per_batch: float | None = None
    busy_share: float | None = None
    item_errors_per_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    model_name: str = ""


def rates(before: Sequence[pb2.WorkerStats], after: Sequence[pb2.WorkerStats]) -> list[WorkerRates]:
    """Computes the rates of each worker in ``after``, plus the total (process id 0) if there are several rows."""
    known = {_key(stats): stats for stats in before}
    rows = [_worker_rates(known.get(_key(stats)), stats) for stats in after]
    if len({stats.process_id for stats in after}) < len(after):
        names = [printable(stats.model_name) for stats in after]
        rows = [dataclasses.replace(row, model_name=name) for row, name in zip(rows, names, strict=True)]
    if len(after) > 1:
        # A worker that is new contributes nothing to the difference yet.
        same_workers = [known.get(_key(stats), stats) for stats in after]
        rows.append(_worker_rates(_total(same_workers) if known else None, _total(after)))
    return rows


def _key(stats: pb2.WorkerStats) -> tuple[int, str]:
    return stats.process_id, stats.model_name


def _worker_rates(before: pb2.WorkerStats | None, after: pb2.WorkerStats) -> WorkerRates:
    state = WorkerRates(
        after.process_id,
        printable(after.model_id),
        after.serving,
        _seconds(after.up_time),
        after.requests_running,
        after.queued_items,
        after.queued_tokens,
        _seconds(after.expected_wait),
    )
    elapsed_s = state.up_s - _seconds(before.up_time) if before else 0.0
    if before is None or elapsed_s <= 0:
        return state
    items = after.items_total - before.items_total
    tokens = after.tokens_total - before.tokens_total
    padding = after.padding_tokens_total - before.padding_tokens_total
    batches = after.batches_total - before.batches_total
    compute_s = _seconds(after.compute_total) - _seconds(before.compute_total)
    errors = {
        reason: count - before.item_errors_total.get(reason, 0) for reason, count in after.item_errors_total.items()
    }
    return dataclasses.replace(
        state,
        items_per_s=items / elapsed_s,
        tokens_per_s=tokens / elapsed_s,
        padding_share=padding / (tokens + padding) if tokens else None,
        items_per_batch=items / batches if batches else None,
        # A batch is counted at its end, including its time before the first reading.
        busy_share=min(compute_s / elapsed_s / max(after.compute_threads, 1), 1.0),
        item_errors_per_s={printable(reason): count / elapsed_s for reason, count in errors.items() if count},
    )


def _total(workers: Sequence[pb2.WorkerStats]) -> pb2.WorkerStats:
    """Adds up all workers."""
    total = pb2.WorkerStats(
        model_id=", ".join(sorted({worker.model_id for worker in workers})),
        serving=all(worker.serving for worker in workers),
        up_time=max((worker.up_time for worker in workers), key=_seconds),
        expected_wait=max((worker.expected_wait for worker in workers), key=_seconds),
    )
    for name in _SUMMED_FIELDS:
        setattr(total, name, sum(getattr(worker, name) for worker in workers))
    for name in _SHARED_FIELDS:
        by_process = {worker.process_id: getattr(worker, name) for worker in workers}
        setattr(total, name, sum(by_process.values()))
    total.compute_total.FromNanoseconds(sum(worker.compute_total.ToNanoseconds() for worker in workers))
    for worker in workers:
        for reason, count in worker.item_errors_total.items():
            total.item_errors_total[reason] += count
    return total


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9

"""Prometheus metrics of one server process; ``scrape_server`` serves them."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from polyhead_server.errors import ExpiredError, InternalError, OverloadedError, ServerError

from .candidate_metrics import CandidateCollector
from .drift_metrics import DriftMetrics
from .logging import dropped_lines
from .metric_factories import Instruments, ModelInstruments

if TYPE_CHECKING:
    from polyhead_server.inference.executor import BatchOutcome
    from polyhead_server.inference.model import Model
    from polyhead_server.inference.types import ItemOutcome, QueueState

# A batch takes from 2 ms to seconds; the queue holds less than a minute of work.
_DURATION_BUCKETS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
# From a short text to 16 MiB, the default of --max-message-bytes.
_SIZE_BUCKETS_BYTES = [4**power for power in range(3, 13)]
_BATCH_SIZE_BUCKETS = [1, 2, 4, 8, 16, 32, 64]
# Often enough to show stalls that a client notices, rarely enough to cost nothing.
_SAMPLE_INTERVAL_S = 0.1
# Samples for each count of tasks, which takes a millisecond where thousands of streams are open.
_SAMPLES_PER_TASK_COUNT = 10


class HasQueue(Protocol):
    """A component with a queue: a pipeline, or the engine core of the engine process."""

    def queue_state(self) -> QueueState:
        """Returns what waits."""


class Metrics:
    """All metrics of one server process, as described in docs/reference/metrics.md. A scrape adds up several workers.

    Each of several models has an object of its own. They share the registry and the metrics of the process; those of
    the models have the label ``model``.

    Attributes:
        instruments: The metrics, by which checks find their names, labels and HELP texts.
        candidate: Those of a candidate; with several workers, the supervisor has them instead.
    """

    def __init__(self, model: str = "", beside: Metrics | None = None) -> None:
        """Creates the metrics.

        Args:
            model: Name of the model, one of several; empty for the only one.
            beside: Metrics of another model of the same process.
        """
        self.instruments: Instruments = beside.instruments if beside else Instruments()
        self._model = model
        self._process: _ProcessMetrics = beside._process if beside else _ProcessMetrics(self.instruments)
        self._requests: _RequestMetrics = beside._requests if beside else _RequestMetrics(self.instruments)
        self._collection: _CollectionMetrics = beside._collection if beside else _CollectionMetrics(self.instruments)
        self._make = make = ModelInstruments(self.instruments, model) if model else self.instruments
        self._runtime = _RuntimeMetrics(make)
        self._items = _ItemMetrics(make)
        self._cache = _CacheMetrics(make)
        self._queue = _QueueMetrics(make)
        self._candidates: CandidateCollector = beside._candidates if beside else CandidateCollector()
        if beside is None:
            self.registry.register(self._candidates)
        self.candidate = self._candidates.add(model)
        # With several workers it would show the resources of just one of them.
        if beside is None and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            ProcessCollector(registry=self.registry)

    @property
    def registry(self) -> CollectorRegistry:
        """The registry that a scrape reads."""
        return self.instruments.registry

    def drift(self) -> DriftMetrics:
        """Adds the gauges of drift, which only the process has that reports it."""
        return DriftMetrics(self._make)

    def certificate_expiry(self) -> Callable[[float], None]:
        """Adds the gauge of the certificate's expiry, which a server without TLS does not have; returns its setter."""
        return self.instruments.gauge(
            "polyhead_certificate_expiry_seconds",
            "Unix time at which the TLS certificate expires.",
            # Of several workers, the certificate that expires first.
            mode="livemin",
        ).set

    def set_runtime(self, model: Model, threads: int) -> None:
        """Reports the serving model and its number of compute threads."""
        self._process.set_threads(self._model, model.engine.runtime.device, threads)
        self._runtime.set(model)

    def count_reload(self, outcome: str) -> None:
        """Counts a reload by its outcome, ``success`` or ``refused``."""
        self._runtime.reloads.labels(outcome).inc()

    def initialize_requests(self, methods: Iterable[str]) -> None:
        """Creates the request counters of these methods at 0, so that Prometheus sees their first increase."""
        for method in methods:
            for code in ("OK", "INTERNAL", "UNKNOWN"):
                self._requests.total.labels(method, code)

    def set_requests_running(self, count: int) -> None:
        """Reports the number of calls in progress."""
        self._requests.running.set(count)

    def observe_request(self, method: str, code: str, duration_s: float, *, unary: bool) -> None:
        """Counts a call that has ended, and records the duration of a unary one."""
        self._requests.counter(method, code).inc()
        if unary:
            self._requests.duration(method).observe(duration_s)

    def observe_request_bytes(self, size: int) -> None:
        """Records the size of a request message."""
        self._requests.request_bytes.observe(size)

    def observe_response_bytes(self, size: int) -> None:
        """Records the size of a response message."""
        self._requests.response_bytes.observe(size)

    def count_outcomes(self, outcomes: Iterable[ItemOutcome]) -> None:
        """Counts errors and truncated texts among the outcomes of items."""
        errors: list[str] = []
        truncated = 0
        for outcome in outcomes:
            if isinstance(outcome, ServerError):
                errors.append(outcome.reason)
            else:
                truncated += outcome.tokens.cut_at is not None
        if errors:
            for reason, count in Counter(errors).items():
                self._items.errors.labels(reason).inc(count)
        if truncated:
            self._items.truncated.inc(truncated)

    def observe_batches(self, finished: Sequence[BatchOutcome]) -> None:
        """Records batches of at least one item that have been computed, and the queueing time of each item."""
        self._items.observe_batches(finished)
        self._queue.seconds.observe_many(
            [max(done.started_ns - entry.tokenized_ns, 0) / 1e9 for done in finished for entry in done.batch.entries]
        )

    def count_cache_lookups(self, hits: int, misses: int) -> None:
        """Counts look-ups in the answer cache."""
        self._cache.hits.inc(hits)
        self._cache.misses.inc(misses)

    def count_collected(self, reason: str) -> None:
        """Counts a text that was collected, for one of its reasons."""
        self._collection.collected.labels(reason).inc()

    def count_uncollected(self, reason: str) -> None:
        """Counts a text that was not collected for want of room or time, by reason."""
        self._collection.uncollected.labels(reason).inc()

    def set_collection_stopped(self, stopped: bool) -> None:
        """Reports whether texts cannot be collected."""
        self._collection.stopped.set(stopped)

    async def sample(
        self, pipeline: Callable[[], HasQueue | None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Samples the queue and the event loop ten times a second, and its tasks once a second; never returns.

        Args:
            pipeline: Returns the pipeline that serves now, or None.
            sleep: Waits for a number of seconds.
        """
        for number in itertools.count():
            if number % _SAMPLES_PER_TASK_COUNT == 0:
                self._process.event_loop_tasks.set(len(asyncio.all_tasks()))
            started = time.monotonic()
            await sleep(_SAMPLE_INTERVAL_S)
            self._process.event_loop_lag_seconds.observe(max(time.monotonic() - started - _SAMPLE_INTERVAL_S, 0.0))
            self._process.count_dropped_lines()
            self._sample_queue(pipeline())

    async def sample_queue(
        self, pipeline: Callable[[], HasQueue | None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Samples the queue alone, for a model beside the one that ``sample`` runs for; never returns."""
        while True:
            await sleep(_SAMPLE_INTERVAL_S)
            self._sample_queue(pipeline())

    def _sample_queue(self, pipeline: HasQueue | None) -> None:
        if pipeline:
            queue = pipeline.queue_state()
            self._queue.set(queue)
            self._cache.set(queue)

    def value(self, name: str, **labels: str) -> float:
        """Returns the current value of a sample of this model or of the process, such as ``polyhead_items_total``."""
        of_process = self.registry.get_sample_value(name, labels)
        if of_process is None and self._model:
            return self.registry.get_sample_value(name, {"model": self._model, **labels}) or 0.0
        return of_process or 0.0

    def item_errors(self) -> dict[str, int]:
        """Returns the number of items that were answered with an error, by reason."""
        samples = [sample for metric in self._items.errors.collect() for sample in metric.samples]
        return {one.labels["reason"]: int(one.value) for one in samples if one.name.endswith("_total") and one.value}


class _ProcessMetrics:
    """What the models of a process share: its version, log, event loop and threads."""

    def __init__(self, make: Instruments) -> None:
        self.build = make.gauge("polyhead_build_info", "1 for the version of the server.", "version", mode="livemax")
        self.build.labels(version("polyhead")).set(1)
        self.dropped_log_lines = make.counter(
            "polyhead_dropped_log_lines", "Number of log lines that were not written.", "reason"
        )
        self.event_loop_lag_seconds = make.histogram(
            "polyhead_event_loop_lag_seconds", "Delay of a timer of 0.1 s.", buckets=_DURATION_BUCKETS_S
        )
        self.event_loop_tasks = make.gauge(
            "polyhead_event_loop_tasks", "Number of asyncio tasks, sampled once a second.", mode="livesum"
        )
        self.compute_threads = make.gauge(
            "polyhead_compute_threads",
            "Number of compute threads, the maximum number of batches in progress.",
            mode="livesum",
        )
        # Device and threads of each model.
        self._threads: dict[str, tuple[str, int]] = {}
        self._dropped_lines = dict.fromkeys(dropped_lines(), 0)
        for reason in self._dropped_lines:
            self.dropped_log_lines.labels(reason)

    def set_threads(self, model: str, device: str, threads: int) -> None:
        """Reports how many batches may be in progress: models on one device share its threads."""
        self._threads[model] = (device, threads)
        self.compute_threads.set(sum(dict(self._threads.values()).values()))

    def count_dropped_lines(self) -> None:
        for reason, count in dropped_lines().items():
            self.dropped_log_lines.labels(reason).inc(count - self._dropped_lines[reason])
            self._dropped_lines[reason] = count


class _RuntimeMetrics:
    """Models and reloads."""

    def __init__(self, make: Instruments | ModelInstruments) -> None:
        self.info = make.gauge(
            "polyhead_runtime_info",
            "1 for the model, engine, device and variant in use, 0 for those in use before a reload.",
            *("model_id", "engine", "device", "variant"),
            # Several workers show one series, and none of a worker that has ended.
            mode="livemax",
        )
        self.fingerprints = make.gauge(
            "polyhead_fingerprint_info",
            "1 for the fingerprints of the serving model, 0 for those in use before a reload.",
            *("component", "fingerprint"),
            mode="livemax",
        )
        self.reloads = make.counter("polyhead_reloads", "Number of reloads of the bundle.", "outcome")
        # Alerts watch this counter, and Prometheus sees no increase in a series that appears with the value 1.
        for outcome in ("success", "refused"):
            self.reloads.labels(outcome)
        self._current: list[Gauge] = []

    def set(self, model: Model) -> None:
        for gauge in self._current:
            gauge.set(0)
        runtime, fingerprints = model.engine.runtime, model.fingerprints
        components = {"embedding_space": fingerprints.embedding_space, **fingerprints.heads}
        self._current = [
            self.info.labels(model.source.model_id, runtime.engine, runtime.device, runtime.variant),
            *(self.fingerprints.labels(component, fingerprint) for component, fingerprint in components.items()),
        ]
        for gauge in self._current:
            gauge.set(1)


class _RequestMetrics:
    """Calls of the inference service, and their messages."""

    def __init__(self, make: Instruments) -> None:
        self.total = make.counter(
            "polyhead_requests", "Number of calls that have ended, streams included.", "method", "code"
        )
        self.duration_seconds = make.histogram(
            "polyhead_request_duration_seconds", "Duration of unary calls.", "method", buckets=_DURATION_BUCKETS_S
        )
        # The library's look-up of labels locks and compares; a dictionary is enough for the few names that there are.
        self.counter = functools.cache(self.total.labels)
        self.duration = functools.cache(self.duration_seconds.labels)
        self.running = make.gauge(
            "polyhead_requests_running", "Number of calls in progress, streams included.", mode="livesum"
        )
        self.request_bytes = make.histogram(
            "polyhead_request_bytes", "Size of request messages.", buckets=_SIZE_BUCKETS_BYTES
        )
        self.response_bytes = make.histogram(
            "polyhead_response_bytes", "Size of response messages.", buckets=_SIZE_BUCKETS_BYTES
        )


class _ItemMetrics:
    """Items and the batches in which they are computed. A long text counts as several items if read in windows."""

    def __init__(self, make: Instruments | ModelInstruments) -> None:
        self.computed = make.counter("polyhead_items", "Number of texts, or windows of texts, computed.")
        self.shared = make.counter(
            "polyhead_shared_items",
            "Number of texts, or windows of texts, answered with an equal one that was computed.",
        )
        self.tokens = make.counter("polyhead_tokens", "Number of tokens computed, without padding.")
        self.padding = make.counter("polyhead_padding_tokens", "Number of padding tokens computed.")
        self.truncated = make.counter("polyhead_truncated_items", "Number of texts that were truncated.")
        self.errors = make.counter("polyhead_item_errors", "Number of texts answered with an error.", "reason")
        # Alerts watch these reasons; see the counter of reloads.
        for error in (OverloadedError, ExpiredError, InternalError):
            self.errors.labels(error.reason)
        self.batch_size = make.histogram(
            "polyhead_batch_size", "Number of items in a batch.", buckets=_BATCH_SIZE_BUCKETS
        )
        self.batch_duration_seconds = make.histogram(
            "polyhead_batch_duration_seconds",
            "Duration of a batch, from padding to postprocessing.",
            buckets=_DURATION_BUCKETS_S,
        )

    def observe_batches(self, finished: Sequence[BatchOutcome]) -> None:
        sizes = [len(done.batch.entries) for done in finished]
        self.computed.inc(sum(sizes))
        if shared := sum([done.batch.shared_items for done in finished]):
            self.shared.inc(shared)
        self.tokens.inc(sum([done.batch.tokens for done in finished]))
        self.padding.inc(sum([done.batch.padding for done in finished]))
        self.batch_size.observe_many(sizes)
        self.batch_duration_seconds.observe_many([done.compute_s for done in finished])


class _CacheMetrics:
    """The answer cache; all of them stay 0 without one."""

    def __init__(self, make: Instruments | ModelInstruments) -> None:
        self.hits = make.counter(
            "polyhead_answer_cache_hits", "Number of texts, or windows of texts, answered from the cache."
        )
        self.misses = make.counter(
            "polyhead_answer_cache_misses", "Number of texts, or windows of texts, looked up in vain."
        )
        self.bytes = make.gauge("polyhead_answer_cache_bytes", "Memory of the answer cache.", mode="livesum")

    def set(self, queue: QueueState) -> None:
        self.bytes.set(queue.cache_bytes)


class _CollectionMetrics:
    """Texts collected for labelling; all of them stay 0 without ``--collect``."""

    def __init__(self, make: Instruments) -> None:
        self.collected = make.counter(
            "polyhead_collected_texts",
            "Number of texts collected for labelling, by reason; a text with several reasons counts for each.",
            "reason",
        )
        self.uncollected = make.counter(
            "polyhead_uncollected_texts", "Number of texts that could not be collected.", "reason"
        )
        # The reasons of ``collection``; see the counter of reloads.
        for reason in ("random", "low_confidence", "novel"):
            self.collected.labels(reason)
        for reason in ("queue_full", "text_too_long", "redaction_failed", "write_failed"):
            self.uncollected.labels(reason)
        self.stopped = make.gauge(
            "polyhead_collection_stopped",
            "1 while texts cannot be collected, for example because the disk is full, otherwise 0.",
            mode="livemax",
        )


class _QueueMetrics:
    """The queue."""

    def __init__(self, make: Instruments | ModelInstruments) -> None:
        self.items = make.gauge("polyhead_queued_items", "Number of items in the queue.", mode="livesum")
        self.tokens = make.gauge("polyhead_queued_tokens", "Number of tokens in the queue.", mode="livesum")
        self.expected_wait = make.gauge(
            "polyhead_expected_wait_seconds",
            "Expected queueing time of a text that arrives now.",
            # Of several workers, the longest.
            mode="livemax",
        )
        self.seconds = make.histogram(
            "polyhead_queue_seconds",
            "Time of each item from the end of its tokenization to the start of its batch.",
            buckets=_DURATION_BUCKETS_S,
        )

    def set(self, queue: QueueState) -> None:
        self.items.set(queue.items)
        self.tokens.set(queue.tokens)
        self.expected_wait.set(queue.expected_wait_s)

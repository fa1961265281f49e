"""Prometheus metrics, over HTTP on an address of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    multiprocess,
    start_http_server,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict

from polyhead_server.errors import ExpiredError, InternalError, OverloadedError, ServerError, StartupError
from polyhead_server.rpc.status import TABLE, reason
from polyhead_server.settings import split_address

if TYPE_CHECKING:
    from polyhead_server.inference.model import Model
    from polyhead_server.inference.pipeline import Pipeline
    from polyhead_server.inference.types import Batch, ItemOutcome

logger = logging.getLogger(__name__)

# A pass takes from 2 ms to seconds; nobody waits for longer than a minute.
_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
# From a short text to the largest message that is taken by default.
_BYTES = [4**power for power in range(3, 13)]
# Often enough to see what a client feels, seldom enough to cost nothing.
_LOOK_S = 0.1


class Metrics:
    """What one server counts; docs/metrics.md says what each metric means.

    Names end in their unit; counters get ``_total`` from the library. Of several workers a scrape gives the sum.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._runtime = Gauge(
            "polyhead_runtime_info",
            "1 for the engine, device and variant that really run, 0 for those that did before a reload.",
            ["model_id", "engine", "device", "variant"],
            registry=registry,
            # Of several workers one line, and none of a worker that is gone.
            multiprocess_mode="livemax",
        )
        self._fingerprints = Gauge(
            "polyhead_fingerprint_info",
            "1 for the fingerprints that answers carry, 0 for those that they carried before a reload.",
            ["component", "fingerprint"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._items = Counter(
            "polyhead_items", "Texts, or windows of texts, that the model computed.", registry=registry
        )
        self._tokens = Counter("polyhead_tokens", "Tokens that it computed, without padding.", registry=registry)
        self._padding = Counter("polyhead_padding_tokens", "Tokens of padding that it computed.", registry=registry)
        self._truncated = Counter(
            "polyhead_truncated_items", "Items that were not read to their end.", registry=registry
        )
        self._refused = Counter(
            "polyhead_item_errors", "Items that were answered with an error.", ["reason"], registry=registry
        )
        self._reloads = Counter("polyhead_reloads", "Reloads of the bundle.", ["outcome"], registry=registry)
        self._calls_total = Counter(
            "polyhead_requests", "Calls that have ended, streams included.", ["method", "code"], registry=registry
        )
        self._call_seconds = Histogram(
            "polyhead_request_duration_seconds",
            "Duration of a unary call.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._request_bytes = Histogram(
            "polyhead_request_bytes", "Size of a request message.", buckets=_BYTES, registry=registry
        )
        self._response_bytes = Histogram(
            "polyhead_response_bytes", "Size of a response message.", buckets=_BYTES, registry=registry
        )
        self._lag_seconds = Histogram(
            "polyhead_event_loop_lag_seconds",
            "By how much a timer of 0.1 s was late.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._calls = Gauge(
            "polyhead_requests_running",
            "Calls that are running, streams included.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._queued_items = Gauge(
            "polyhead_queued_items", "Texts that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self._queued_tokens = Gauge(
            "polyhead_queued_tokens", "Tokens that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self._expected_wait = Gauge(
            "polyhead_expected_wait_seconds",
            "Expected wait of a text that came now.",
            registry=registry,
            # Of several workers the longest.
            multiprocess_mode="livemax",
        )
        self._queue_seconds = Histogram(
            "polyhead_queue_seconds",
            "How long the item of a pass that waited longest was in the queue.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._pass_items = Histogram(
            "polyhead_batch_size", "Texts in a pass.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=registry
        )
        self._pass_seconds = Histogram(
            "polyhead_batch_duration_seconds", "Duration of a pass.", buckets=_SECONDS, registry=registry
        )
        Gauge(
            "polyhead_build_info", "1 for the version.", ["version"], registry=registry, multiprocess_mode="livemax"
        ).labels(version("polyhead")).set(1)
        self._compute_threads = Gauge(
            "polyhead_compute_threads",
            "Threads that compute: at most so many passes run at once.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Of several workers it would say what one of them uses.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            ProcessCollector(registry=registry)
        # Counters that alerts look at begin at 0: Prometheus sees no increase in one that comes up with 1.
        for outcome in ("success", "refused"):
            self._reloads.labels(outcome)
        for kind in (OverloadedError, ExpiredError, InternalError):
            self._refused.labels(TABLE[kind][1])
        self._named: list[Any] = []

    def certificate_expiry(self) -> Callable[[float], None]:
        """Adds the gauge of the certificate's expiry, which a server without TLS has not, and returns its setter."""
        return Gauge(
            "polyhead_certificate_expiry_seconds",
            "Unix time at which the TLS certificate expires.",
            registry=self.registry,
            # Of several workers, the one whose certificate expires first.
            multiprocess_mode="livemin",
        ).set

    def serving(self, model: Model, threads: int) -> None:
        """Names what runs from now on, and on how many threads."""
        self._compute_threads.set(threads)
        for gauge in self._named:
            gauge.set(0)
        runtime, fingerprints = model.engine.runtime, model.fingerprints
        named = {"embedding_space": fingerprints.embedding_space, **fingerprints.heads}
        self._named = [
            self._runtime.labels(model.source.model_id, runtime.engine, runtime.device, runtime.variant),
            *(self._fingerprints.labels(component, fingerprint) for component, fingerprint in named.items()),
        ]
        for gauge in self._named:
            gauge.set(1)

    def calls(self, running: int) -> None:
        """Takes the number of calls that are running."""
        self._calls.set(running)

    def expect_calls(self, methods: Iterable[str]) -> None:
        """Lets the counters of calls begin at 0, those of failures as well."""
        for method in methods:
            for code in ("OK", "INTERNAL", "UNKNOWN"):
                self._calls_total.labels(method, code)

    def called(self, method: str, code: str, seconds: float, *, unary: bool) -> None:
        """Counts a call that has ended."""
        self._calls_total.labels(method, code).inc()
        if unary:
            self._call_seconds.labels(method).observe(seconds)

    def requested(self, size: int) -> None:
        """Counts a request message of so many bytes."""
        self._request_bytes.observe(size)

    def responded(self, size: int) -> None:
        """Counts a response message of so many bytes."""
        self._response_bytes.observe(size)

    async def watch(
        self, pipeline: Callable[[], Pipeline | None], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Looks for ever at what waits, and at how long the event loop lets those wait whose turn it is."""
        while True:
            began = time.monotonic()
            await sleep(_LOOK_S)
            self._lag_seconds.observe(max(time.monotonic() - began - _LOOK_S, 0.0))
            if watched := pipeline():
                self._queued_items.set(watched.scheduler.accounting.waiting_items)
                self._queued_tokens.set(watched.scheduler.accounting.waiting_tokens)
                self._expected_wait.set(watched.admission.expected_wait_s())

    def reloaded(self, outcome: str) -> None:
        """Counts a reload: ``success`` or ``refused``."""
        self._reloads.labels(outcome).inc()

    def answered(self, outcomes: Iterable[ItemOutcome]) -> None:
        """Counts the errors and the truncated texts among answers."""
        for outcome in outcomes:
            if isinstance(outcome, ServerError):
                self._refused.labels(reason(outcome)).inc()
            elif outcome.tokens.cut_at is not None:
                self._truncated.inc()

    def observe(self, batch: Batch, seconds: float) -> None:
        """Counts a pass."""
        if batch.entries:
            self._items.inc(len(batch.entries))
            self._tokens.inc(batch.tokens)
            self._padding.inc(batch.padding)
            self._pass_items.observe(len(batch.entries))
            self._pass_seconds.observe(seconds)
            waited = time.monotonic_ns() / 1e9 - seconds - min(entry.tokenized_ns for entry in batch.entries) / 1e9
            self._queue_seconds.observe(max(waited, 0.0))

    def value(self, name: str, **labels: str) -> float:
        """What a sample of this process stands at, such as ``polyhead_items_total``."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def refusals(self) -> dict[str, int]:
        """Items that were answered with an error, by reason."""
        samples = [sample for metric in self._refused.collect() for sample in metric.samples]
        return {one.labels["reason"]: int(one.value) for one in samples if one.name.endswith("_total") and one.value}


class WorkerMetrics:
    """What several workers count together, in files that each writes to a folder: a collector of a registry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._collector = multiprocess.MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        # A scrape, in its thread, sees what a worker counted in its files or in those of the dead, and never in both.
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """What a scrape is answered with."""
        with self._lock:
            return list(self._collector.collect())  # type: ignore[no-untyped-call]

    def bury(self, pid: int) -> None:
        """Keeps what a worker that has ended counted, and removes its files: each scrape would read them for ever."""
        with self._lock:
            for kind in ("counter", "histogram"):
                file = self._folder / f"{kind}_{pid}.db"
                try:
                    _add(file, self._folder / f"{kind}_dead.db")
                except Exception:
                    # Such as a full disk, or a file that was just being made. The others count on.
                    logger.exception("what process %d counted is lost", pid)
                file.unlink(missing_ok=True)
            multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]


def _add(file: Path, to: Path) -> None:
    if not file.exists():
        return
    values = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
    total = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    try:
        for key, value, timestamp, _ in values:
            total.write_value(key, total.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


def listen_for_scrapes(address: str, registry: CollectorRegistry) -> None:
    """Answers on ``http://HOST:PORT/metrics`` from a thread of its own.

    Raises:
        StartupError: The address has another form, or is taken.
    """
    host, port = split_address(address)
    # When each series began is one more for each, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, host, registry=registry)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from error

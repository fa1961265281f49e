"""Prometheus metrics, over HTTP on an address of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from .errors import StartupError
from .settings import split_address

if TYPE_CHECKING:
    from .batching import Batch
    from .loading import Model


class Metrics:
    """What one server counts.

    ===================================  =========  ==========================================================
    name                                 labels     meaning
    ===================================  =========  ==========================================================
    polyhead_runtime_info                engine...  1 for the engine, device and variant that really run
    polyhead_items_total                            items that the model computed
    polyhead_expired_items_total                    items whose deadline passed while they waited
    polyhead_tokens_total                           tokens that the model computed, without padding
    polyhead_pass_items                             items in a pass
    polyhead_pass_seconds                           duration of a pass
    polyhead_certificate_expiry_seconds             Unix time at which the TLS certificate expires
    ===================================  =========  ==========================================================
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._runtime = Gauge(
            "polyhead_runtime_info",
            "The engine, device and variant that really run.",
            ["model_id", "engine", "device", "variant"],
            registry=self.registry,
            # Of several workers one line, and none of a worker that is gone.
            multiprocess_mode="livemax",
        )
        self._items = Counter("polyhead_items", "Items that the model computed.", registry=self.registry)
        self._expired = Counter(
            "polyhead_expired_items", "Items whose deadline passed while they waited.", registry=self.registry
        )
        self._tokens = Counter(
            "polyhead_tokens", "Tokens that the model computed, without padding.", registry=self.registry
        )
        self._pass_items = Histogram(
            "polyhead_pass_items", "Items in a pass.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=self.registry
        )
        self._pass_seconds = Histogram("polyhead_pass_seconds", "Duration of a pass.", registry=self.registry)

    def certificate_expiry(self) -> Callable[[float], None]:
        """Adds the gauge of the certificate's expiry, which a server without TLS has not, and returns its setter."""
        return Gauge(
            "polyhead_certificate_expiry_seconds",
            "Unix time at which the TLS certificate expires.",
            registry=self.registry,
            # Of several workers, the one whose certificate expires first.
            multiprocess_mode="livemin",
        ).set

    def serving(self, model: Model) -> None:
        """Names what runs."""
        runtime = model.engine.runtime
        self._runtime.labels(model.source.model_id, runtime.engine, runtime.device, runtime.variant).set(1)

    def observe(self, batch: Batch, seconds: float) -> None:
        """Counts a pass."""
        self._expired.inc(len(batch.expired))
        if batch.entries:
            self._items.inc(len(batch.entries))
            self._tokens.inc(sum(entry.length for entry in batch.entries))
            self._pass_items.observe(len(batch.entries))
            self._pass_seconds.observe(seconds)


def listen_for_scrapes(address: str, registry: CollectorRegistry) -> None:
    """Answers on ``http://HOST:PORT/metrics`` from a thread of its own.

    Raises:
        StartupError: The address has another form, or is taken.
    """
    host, port = split_address(address)
    try:
        start_http_server(port, host, registry=registry)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from error

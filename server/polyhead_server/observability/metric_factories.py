"""Typed factories of Prometheus instruments, which remember what they made for documentation and checks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# How a scrape of several workers combines the gauges of live workers; those of ended workers are dropped.
GaugeMode = Literal["livesum", "livemax", "livemin"]


class Description(NamedTuple):
    """One metric as a scrape shows it.

    Attributes:
        name: Full name; that of a counter ends in ``_total``.
        help: HELP text.
        labels: Names of its labels.
    """

    name: str
    help: str
    labels: tuple[str, ...]


class BatchHistogram(Histogram):
    """A histogram that observes all values of a batch at once.

    ``Histogram.observe`` takes two locks for each value, on the event loop. Values of one batch mostly fall into one
    or two buckets, so counting them first takes one lock a bucket. The base class has no such method, so this uses its
    protected attributes ``_upper_bounds``, ``_buckets`` and ``_sum``; a test compares it with ``observe``.
    """

    def observe_many(self, amounts: Sequence[float]) -> None:
        """Observes every amount."""
        if len(amounts) == 1:
            # Unary calls of one text mostly form batches of one, for which counting is slower.
            self.observe(amounts[0])
            return
        self._sum.inc(sum(amounts))
        for bucket, count in Tally(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[bucket].inc(count)


class Instruments:
    """Creates the metrics of one registry.

    Attributes:
        registry: Collects all of them.
        descriptions: One for each metric, in order of creation.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Args: the registry; None for a new one."""
        self.registry = registry or CollectorRegistry()
        self.descriptions: list[Description] = []

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """Creates a counter. The library appends ``_total`` to its name."""
        self.descriptions.append(Description(f"{name}_total", help_text, labels))
        return Counter(name, help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, *labels: str, mode: GaugeMode) -> Gauge:
        """Creates a gauge."""
        self.descriptions.append(Description(name, help_text, labels))
        return Gauge(name, help_text, labels, registry=self.registry, multiprocess_mode=mode)

    def histogram(self, name: str, help_text: str, *labels: str, buckets: Iterable[float]) -> BatchHistogram:
        """Creates a histogram."""
        self.descriptions.append(Description(name, help_text, labels))
        return BatchHistogram(name, help_text, labels, buckets=tuple(buckets), registry=self.registry)

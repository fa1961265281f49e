"""Typed factories of Prometheus instruments, which remember what they made for documentation and checks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase

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
    """A histogram that observes quickly, and all values of a batch at once.

    ``Histogram.observe`` takes two locks for each value, on the event loop, and compares the value with one bucket
    after the other. Values of one batch mostly fall into one or two buckets, so counting them first takes one lock a
    bucket. The base class has no such methods, so this uses its protected attributes ``_upper_bounds``, ``_buckets``
    and ``_sum``; a test compares it with the base class.
    """

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observes an amount; a histogram with labels has none of its own. Exemplars are not kept."""
        del exemplar
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)

    def observe_many(self, amounts: Sequence[float]) -> None:
        """Observes every amount."""
        if len(amounts) == 1:
            # Unary calls of one text mostly form batches of one, for which counting is slower.
            self.observe(amounts[0])
            return
        self._sum.inc(sum(amounts))
        for bucket, count in Tally(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[bucket].inc(count)


class _OfModel:
    """A metric with labels of its own, of one of several models, whose name is the first label."""

    def __init__(self, metric: MetricWrapperBase, model: str) -> None:
        self._metric = metric
        self._model = model

    def labels(self, *values: str) -> Any:
        """Returns the series of these values, as the metric of the only model would."""
        return self._metric.labels(self._model, *values)

    def remove(self, *values: str) -> None:
        """Removes the series of these values."""
        self._metric.remove(self._model, *values)

    def collect(self) -> Iterable[Metric]:
        """Yields the metric with the samples of this model alone."""
        for metric in self._metric.collect():
            metric.samples = [one for one in metric.samples if one.labels.get("model") == self._model]
            yield metric


class ModelInstruments:
    """Creates the metrics of one of several models: those of a single model with the label ``model`` before others.

    All models of a server share the metric of a name, which the first of them creates.
    """

    def __init__(self, make: Instruments, model: str) -> None:
        """Creates nothing yet.

        Args:
            make: Creates the shared metrics.
            model: Name of the model.
        """
        self._make = make
        self._model = model

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """Creates a counter. The library appends ``_total`` to its name."""
        metric = self._make.shared(name, lambda: self._make.counter(name, help_text, "model", *labels))
        return cast(Counter, self._bound(metric, labels))

    def gauge(self, name: str, help_text: str, *labels: str, mode: GaugeMode) -> Gauge:
        """Creates a gauge."""
        metric = self._make.shared(name, lambda: self._make.gauge(name, help_text, "model", *labels, mode=mode))
        return cast(Gauge, self._bound(metric, labels))

    def histogram(self, name: str, help_text: str, *labels: str, buckets: Iterable[float]) -> BatchHistogram:
        """Creates a histogram."""
        metric = self._make.shared(
            name, lambda: self._make.histogram(name, help_text, "model", *labels, buckets=buckets)
        )
        return cast(BatchHistogram, self._bound(metric, labels))

    def _bound(self, metric: MetricWrapperBase, labels: Sequence[str]) -> Any:
        return _OfModel(metric, self._model) if labels else metric.labels(self._model)


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
        self._shared: dict[str, MetricWrapperBase] = {}

    def shared(self, name: str, create: Callable[[], MetricWrapperBase]) -> MetricWrapperBase:
        """Returns the metric of a name that several models have, which the first call creates."""
        if name not in self._shared:
            self._shared[name] = create()
        return self._shared[name]

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

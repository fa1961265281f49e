"""Metrics of a candidate, read from its last state at each scrape; series without a candidate do not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class CandidateFigures:
    """The state of a candidate.

    Attributes:
        modes: What it does: ``shadow``, ``canary``, both or neither, each with its model id.
        shadow_texts: Texts of the share by what became of them.
        changed_texts: Texts with another answer, by head.
        canary_texts: Texts of a canary by side, ``served`` or ``candidate``, and outcome, ``success`` or ``error``.
        canary_p99_s: 99th percentile of the latency by side, in seconds.
    """

    modes: Mapping[str, str] = field(default_factory=dict)
    shadow_texts: Mapping[str, int] = field(default_factory=dict)
    changed_texts: Mapping[str, int] = field(default_factory=dict)
    canary_texts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    canary_p99_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class CandidateMetrics:
    """The state of the candidate of one model, which a scrape in another thread reads.

    Attributes:
        figures: The state; replaced as a whole. Empty figures if there is no candidate.
        rollbacks: Number of canaries that were rolled back.
    """

    figures: CandidateFigures = field(default_factory=CandidateFigures)
    rollbacks: int = 0


class CandidateCollector(Collector):
    """Collects the metrics of the candidates of a server; register it as a collector of a registry."""

    def __init__(self) -> None:
        # By name of the model, one of several; empty for the only one.
        self._models: dict[str, CandidateMetrics] = {}

    def add(self, model: str = "") -> CandidateMetrics:
        """Adds a model by its name, one of several; empty for the only one."""
        return self._models.setdefault(model, CandidateMetrics())

    def collect(self) -> Iterator[Metric]:
        """Returns the metrics, which have the label ``model`` where there are several."""
        own = ("model",) if any(self._models) else ()
        families = _Families(own)
        for model, metrics in dict(self._models).items():
            families.add((model,) if own else (), metrics.figures, metrics.rollbacks)
        yield from families.all


class _Families:
    """The families of all metrics, to which the samples of each model are added."""

    def __init__(self, own: tuple[str, ...]) -> None:
        self._info = GaugeMetricFamily(
            "polyhead_candidate_info",
            "1 for the candidate, by whether it is compared (shadow) or answers calls (canary).",
            labels=(*own, "model_id", "mode"),
        )
        self._shadow = CounterMetricFamily(
            "polyhead_shadow_texts", "Number of sampled texts by what became of them.", labels=(*own, "outcome")
        )
        self._changed = CounterMetricFamily(
            "polyhead_shadow_changed_texts",
            "Number of compared texts for which a head of the candidate gives another answer.",
            labels=(*own, "head"),
        )
        self._canary = CounterMetricFamily(
            "polyhead_canary_texts",
            "Number of texts since the canary began, by whether the served model or the candidate answered.",
            labels=(*own, "side", "outcome"),
        )
        self._latency = GaugeMetricFamily(
            "polyhead_canary_latency_p99_seconds",
            "99th percentile of the time from a message to its answer since the canary began.",
            labels=(*own, "side"),
        )
        self._rollbacks = CounterMetricFamily(
            "polyhead_canary_rollbacks", "Number of canaries that were rolled back by a limit.", labels=own
        )
        self.all: tuple[Metric, ...] = (
            self._info,
            self._shadow,
            self._changed,
            self._canary,
            self._latency,
            self._rollbacks,
        )

    def add(self, own: tuple[str, ...], now: CandidateFigures, rollbacks: int) -> None:
        for mode, model_id in now.modes.items():
            self._info.add_metric((*own, model_id, mode), 1)
        for outcome, count in now.shadow_texts.items():
            self._shadow.add_metric((*own, outcome), count)
        for head, count in now.changed_texts.items():
            self._changed.add_metric((*own, head), count)
        for labels, count in now.canary_texts.items():
            self._canary.add_metric((*own, *labels), count)
        for side, seconds in now.canary_p99_s.items():
            self._latency.add_metric((*own, side), seconds)
        self._rollbacks.add_metric(own, rollbacks)

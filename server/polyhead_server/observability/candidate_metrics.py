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
        canary_texts: Texts of a canary by model, ``served`` or ``candidate``, and outcome, ``success`` or ``error``.
        canary_p99_s: 99th percentile of the latency by model, in seconds.
    """

    modes: Mapping[str, str] = field(default_factory=dict)
    shadow_texts: Mapping[str, int] = field(default_factory=dict)
    changed_texts: Mapping[str, int] = field(default_factory=dict)
    canary_texts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    canary_p99_s: Mapping[str, float] = field(default_factory=dict)


class CandidateMetrics(Collector):
    """Collects the metrics of the candidate of a server; register it as a collector of a registry.

    A scrape in another thread reads one reference, which ``update`` replaces.
    """

    def __init__(self) -> None:
        self._figures = CandidateFigures()
        self._rollbacks = 0

    def update(self, figures: CandidateFigures) -> None:
        """Takes the state of the candidate; empty figures if there is none."""
        self._figures = figures

    def count_rollback(self) -> None:
        """Counts a canary that was rolled back."""
        self._rollbacks += 1

    def collect(self) -> Iterator[Metric]:
        """Returns the metrics."""
        now = self._figures
        info = GaugeMetricFamily(
            "polyhead_candidate_info",
            "1 for the candidate, by whether it is compared (shadow) or answers calls (canary).",
            labels=("model_id", "mode"),
        )
        for mode, model_id in now.modes.items():
            info.add_metric((model_id, mode), 1)
        shadow = CounterMetricFamily(
            "polyhead_shadow_texts", "Number of sampled texts by what became of them.", labels=("outcome",)
        )
        for outcome, count in now.shadow_texts.items():
            shadow.add_metric((outcome,), count)
        changed = CounterMetricFamily(
            "polyhead_shadow_changed_texts",
            "Number of compared texts for which a head of the candidate gives another answer.",
            labels=("head",),
        )
        for head, count in now.changed_texts.items():
            changed.add_metric((head,), count)
        canary = CounterMetricFamily(
            "polyhead_canary_texts",
            "Number of texts since the canary began, by the model that answered.",
            labels=("model", "outcome"),
        )
        for labels, count in now.canary_texts.items():
            canary.add_metric(labels, count)
        latency = GaugeMetricFamily(
            "polyhead_canary_latency_p99_seconds",
            "99th percentile of the time from a message to its answer since the canary began.",
            labels=("model",),
        )
        for model, seconds in now.canary_p99_s.items():
            latency.add_metric((model,), seconds)
        rollbacks = CounterMetricFamily(
            "polyhead_canary_rollbacks", "Number of canaries that were rolled back by a limit.", value=self._rollbacks
        )
        yield from (info, shadow, changed, canary, latency, rollbacks)

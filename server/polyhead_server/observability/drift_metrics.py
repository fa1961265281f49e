"""Metrics of drift, which one process of a server reports for all: its only one, or the supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from polyhead_server.errors import ServerError

from .metric_factories import Instruments, ModelInstruments

if TYPE_CHECKING:  # the supervisor imports numpy only for the first report
    from polyhead_server.drift.report import DriftReport

logger = logging.getLogger(__name__)

# A report takes milliseconds, and a window changes in hours.
_INTERVAL_S = 15.0


class DriftMetrics:
    """Gauges of the last report; without samples while there is none."""

    def __init__(self, make: Instruments | ModelInstruments) -> None:
        self._distance = make.gauge(
            "polyhead_drift_distance",
            "Distance of the recent texts from the validation texts.",
            *("head", "measure"),
            mode="livemax",
        )
        self._p_value = make.gauge(
            "polyhead_drift_p_value",
            "Probability of such a distance without drift, corrected for the number of measures.",
            *("head", "measure"),
            mode="livemax",
        )
        self._detected = make.gauge(
            "polyhead_drift_detected",
            "1 if distance and p-value are beyond their limits, otherwise 0.",
            *("head", "measure"),
            mode="livemax",
        )
        self._texts = make.gauge(
            "polyhead_drift_texts", "Number of recent texts that were counted.", "model_id", mode="livesum"
        )
        # The series of the last report.
        self._shown: set[tuple[Gauge, tuple[str, ...]]] = set()

    def show(self, report: DriftReport) -> None:
        """Replaces the last report."""
        series: dict[tuple[Gauge, tuple[str, ...]], float] = {(self._texts, (report.model_id,)): report.texts}
        for one in report.measures:
            labels = (one.measure.head, one.measure.name)
            series[self._distance, labels] = one.distance
            series[self._detected, labels] = one.drifted
            if one.p_value is not None:
                series[self._p_value, labels] = one.p_value
        for (gauge, values), value in series.items():
            gauge.labels(*values).set(value)
        self._remove(self._shown - set(series))
        self._shown = set(series)

    def clear(self) -> None:
        """Removes the last report."""
        self._remove(self._shown)
        self._shown = set()

    def _remove(self, series: set[tuple[Gauge, tuple[str, ...]]]) -> None:
        for gauge, labels in series:
            gauge.remove(*labels)


async def refresh(
    metrics: DriftMetrics,
    report: Callable[[], Awaitable[DriftReport]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Reports again and again; never returns.

    Args:
        metrics: Where to report.
        report: Makes a report; raises a ``ServerError`` while there is none.
        sleep: Waits for a number of seconds.
    """
    while True:
        try:
            metrics.show(await report())
        except ServerError:
            metrics.clear()
        except Exception:
            # Whatever the reason, scrapes must not show an old report for ever, and the server must go on.
            logger.exception("drift cannot be reported")
            metrics.clear()
        await sleep(_INTERVAL_S)

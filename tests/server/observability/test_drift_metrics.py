"""The gauges of drift, and how they follow the reports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from polyhead_server.drift.report import DriftReport, MeasureDrift
from polyhead_server.errors import DriftNotAvailableError
from polyhead_server.observability.drift_metrics import DriftMetrics, refresh
from polyhead_server.observability.metric_factories import Instruments, ModelInstruments
from polyhead_server.process_reports import Measure, MeasureKind

TOPIC = Measure("topic", "answers", MeasureKind.SHARES, ("a", "b"), (0.5, 0.5), 400)
DRIFTED = DriftReport("m", 86400.0, 90, 0, 400, 0.1, [MeasureDrift(TOPIC, 90, (0.9, 0.1), 0.4, 1e-5, 45.0, True)])
UNTOLD = DriftReport("n", 86400.0, 5, 0, 400, 0.1, [MeasureDrift(TOPIC, 5, (0.8, 0.2), 0.2, None, 5.0, False)])
LABELS = {"head": "topic", "measure": "answers"}


@pytest.fixture
def made() -> Instruments:
    return Instruments()


def values(made: Instruments) -> dict[str, float | None]:
    found = {
        name: made.registry.get_sample_value(f"polyhead_drift_{name}", LABELS)
        for name in ("distance", "p_value", "detected")
    }
    return {name: value for name, value in found.items() if value is not None}


def test_report_is_shown_by_head_and_measure(made: Instruments) -> None:
    metrics = DriftMetrics(made)
    assert values(made) == {}
    metrics.show(DRIFTED)
    assert values(made) == {"distance": 0.4, "p_value": 1e-5, "detected": 1}
    assert made.registry.get_sample_value("polyhead_drift_texts", {"model_id": "m"}) == 90


def test_another_model_forgets_the_last_report(made: Instruments) -> None:
    metrics = DriftMetrics(made)
    metrics.show(DRIFTED)
    metrics.show(UNTOLD)
    assert values(made) == {"distance": 0.2, "detected": 0}
    assert made.registry.get_sample_value("polyhead_drift_texts", {"model_id": "m"}) is None
    assert made.registry.get_sample_value("polyhead_drift_texts", {"model_id": "n"}) == 5


def test_each_of_several_models_has_gauges_of_its_own(made: Instruments) -> None:
    first, second = (DriftMetrics(ModelInstruments(made, name)) for name in ("tickets", "reviews"))
    first.show(DRIFTED)
    second.show(UNTOLD)
    second.clear()
    labels = {"model": "tickets", **LABELS}
    assert made.registry.get_sample_value("polyhead_drift_distance", labels) == 0.4
    assert made.registry.get_sample_value("polyhead_drift_distance", {**labels, "model": "reviews"}) is None


async def test_gauges_follow_the_reports_and_vanish_without_one(
    made: Instruments, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: Iterator[DriftReport | Exception] = iter(
        [DRIFTED, DriftNotAvailableError("no reference"), DRIFTED, ValueError("a fault")]
    )
    seen: list[dict[str, float | None]] = []

    async def report() -> DriftReport:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(_: float) -> None:
        seen.append(values(made))
        if len(seen) == 4:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await refresh(DriftMetrics(made), report, sleep)
    assert [bool(one) for one in seen] == [True, False, True, False]
    assert "drift cannot be reported" in caplog.text

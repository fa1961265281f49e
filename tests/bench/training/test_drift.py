"""The simulation of weeks of traffic, with texts of three counts, and the tables of its results."""

from __future__ import annotations

import dataclasses

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.drift.counting import Counter, Rows
from polyhead_server.drift.measures import measures_of

from bench.report.drift import delay_table, false_alarm_table
from bench.training import drift
from bench.training.drift import Scenario, Traffic
from tests.support import small_bundle
from tests.support.drift_reference import FAKE

TEXTS = 400


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    """Texts of three topics, with a length of their own, and reviews, which are longer."""
    head = small_bundle.HEADS[0]
    topic = bundle.HeadReference((0.5, 0.25, 0.25), (0.0,) * 9 + (1.0,), ())
    reference = dataclasses.replace(FAKE, heads={"topic": topic}, embedding_mean=(), embedding_spread=())
    manifest = small_bundle.changed_manifest(heads=(head,), reference=reference)
    counter = Counter(manifest, measures_of(manifest))
    labels = np.repeat([0, 1, 2], [TEXTS // 2, TEXTS // 4, TEXTS // 4])

    def counted(label: int, tokens: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        scores = np.full((1, 3), 0.02)
        scores[0, label] = 0.96
        return counter.count(Rows({"topic": scores}, np.array([tokens]), np.array([False])))

    lengths = np.random.default_rng(0).choice([3, 7, 12], size=TEXTS, p=[0.25, 0.5, 0.25])
    usual = np.array([counted(label, tokens) for label, tokens in zip(labels, lengths, strict=True)])
    return Traffic(usual, labels, np.array([counted(0, 100)] * 10), counter)


def test_week_without_drift_is_not_reported(traffic: Traffic) -> None:
    found = drift.simulate(traffic, Scenario("independent"), 50, np.random.default_rng(0))
    assert (found["hour"], found["significant"]) == (None, False)


def test_sudden_drift_is_reported_after_it_begins(traffic: Traffic) -> None:
    found = drift.simulate(traffic, Scenario("independent"), 50, np.random.default_rng(1))
    assert found["hour"] is None
    found = drift.simulate(traffic, Scenario("sessions", "reviews", "sudden", 0.5), 50, np.random.default_rng(1))
    assert drift.DRIFT_FROM_H < found["hour"] <= drift.DRIFT_FROM_H + 24
    assert found["measure"] == "tokens"


def test_slow_drift_grows_and_sudden_drift_does_not() -> None:
    slow, sudden = Scenario("sessions", "reviews", "slow", 0.5), Scenario("sessions", "reviews", "sudden", 0.5)
    assert [drift.drift_share(slow, hour) for hour in (0, 84, 168)] == [0, 0.25, 0.5]
    assert [drift.drift_share(sudden, hour) for hour in (0, 47, 48, 168)] == [0, 0, 0.5, 0.5]


def test_tables_count_weeks_and_hours_from_the_beginning() -> None:
    week = {"measure": "tokens", "significant": False, "uncorrected": False}
    summary = drift.summary([{**week, "hour": 60}, {**week, "hour": 68}, {**week, "hour": None, "measure": ""}])
    sudden = {**Scenario("sessions", "label", "sudden", 0.2)._asdict(), **summary}
    lines = delay_table([sudden]).splitlines()
    assert lines[2] == "| sudden, 20 % of one label | 2 of 3 | 16 | 13 | 19 | tokens |"
    quiet = drift.summary([{**week, "hour": None, "uncorrected": True}] * 2)
    none = {**Scenario("sessions")._asdict(), **quiet}
    assert delay_table([none, {**sudden, **quiet}]).splitlines()[2] == (
        "| sudden, 20 % of one label | 0 of 2 |  |  |  |  |"
    )
    assert false_alarm_table([none, sudden]).splitlines()[2:] == ["| sessions | 2 | 0 | 0 | 2 |"]

"""The report on the traffic of several processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.drift.exchange import TOTALS, encode, report_on
from polyhead_server.drift.measures import measures_of, slices
from polyhead_server.errors import DriftNotAvailableError
from polyhead_server.process_reports import DriftCounts
from polyhead_server.workers import ipc

from tests.support.drift_reference import with_reference


@pytest.fixture
def counts(manifest: bundle.Manifest) -> DriftCounts:
    """Two hours of 100 texts each, all of topic a."""
    measures = measures_of(with_reference(manifest))
    blocks = np.zeros((2, TOTALS + sum(one.width for one in measures)))
    blocks[:, 0], blocks[:, 1] = 100, 5
    for measure, place in slices(measures):
        if (measure.head, measure.name) == ("topic", "answers"):
            blocks[:, TOTALS + place.start] = 100
    return DriftCounts("", "m", measures, 86400.0, 0.1, (7, 8), encode(blocks))


def test_processes_are_added_up_by_bucket(counts: DriftCounts) -> None:
    later = dataclasses.replace(counts, numbers=(8, 9))
    report = report_on([counts, later])
    assert (report.model_id, report.window_s, report.texts, report.uncounted) == ("m", 86400, 400, 20)
    (answers,) = report.measures
    assert (answers.texts, answers.observed, answers.drifted) == (400, (1.0, 0.0, 0.0), True)
    # Three blocks instead of two make a more certain test.
    assert (answers.p_value or 1) < (report_on([counts]).measures[0].p_value or 1)


def test_models_of_two_processes_are_not_mixed(counts: DriftCounts) -> None:
    other = dataclasses.replace(counts, model_id="other", measures=counts.measures[:1], counts="", numbers=())
    report = report_on([other, counts, counts])
    assert (report.model_id, report.texts) == ("m", 400)


def test_process_that_counts_nothing_is_left_out(counts: DriftCounts) -> None:
    assert report_on([DriftCounts("no model serves yet"), counts]).texts == 200
    with pytest.raises(DriftNotAvailableError, match="no model serves yet"):
        report_on([DriftCounts("no model serves yet")])
    with pytest.raises(DriftNotAvailableError, match="no process serves"):
        report_on([])


def test_small_distance_is_no_drift_however_certain(counts: DriftCounts) -> None:
    assert report_on([counts]).measures[0].distance == pytest.approx(0.56, abs=0.02)
    assert not report_on([dataclasses.replace(counts, min_distance=0.6)]).measures[0].drifted


def test_counts_survive_the_way_to_the_supervisor(counts: DriftCounts) -> None:
    response = ipc.decode(ipc.encode_result(counts, 1))
    assert isinstance(response, ipc.Response)
    received = ipc.DRIFT.result_of(response)
    assert received == counts
    assert report_on([received]) == report_on([counts])

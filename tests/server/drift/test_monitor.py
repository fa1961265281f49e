"""What a process counts of its batches, in which time, and what a new model forgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.drift.exchange import decode, report_on
from polyhead_server.drift.monitor import CHUNK, DriftMonitor
from polyhead_server.errors import DriftNotAvailableError, InternalError
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Entry, ItemOutcome, ModelOutput, Result, Timings, TokenizedText
from polyhead_server.settings import Settings

from tests.support.drift_reference import with_reference
from tests.support.queue_entries import entry
from tests.support.submissions import message, outcomes

MakeSettings = Callable[..., Settings]


class Clock:
    """Time, and CPU time that each look at it takes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 0.0
        self.cpu_per_look = 0.0

    def time(self) -> float:
        return self.now

    def thread_time(self) -> float:
        self.cpu += self.cpu_per_look
        return self.cpu


@pytest.fixture
def referenced(model: Model, manifest: bundle.Manifest) -> Model:
    return dataclasses.replace(model, source=dataclasses.replace(model.source, manifest=with_reference(manifest)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(settings: MakeSettings, clock: Clock) -> DriftMonitor:
    return DriftMonitor(settings(), clock.time, clock.thread_time)


def batch(count: int, topic: int = 0) -> tuple[list[Entry], list[ItemOutcome]]:
    """Returns texts whose most probable label is this one."""
    entries = [entry(3) for _ in range(count)]
    scores = np.full(3, 0.05, np.float32)
    scores[topic] = 0.9
    output = ModelOutput(np.array([1.0, 2.0], np.float32), (scores,), (scores, np.array([0.8], np.float32)))
    return entries, [Result(output, one.tokens, Timings(0, 0, 0, 0, count, 0, 0)) for one in entries]


def observe(monitor: DriftMonitor, model: Model, *batches: tuple[Sequence[Entry], Sequence[ItemOutcome]]) -> None:
    watch = monitor.watch(model)
    assert watch
    for one in batches:
        watch(*one)


async def test_texts_are_counted_without_waiting_for_a_chunk(monitor: DriftMonitor, referenced: Model) -> None:
    observe(monitor, referenced, batch(3), batch(2, topic=1))
    report = report_on([monitor.counts()])
    assert (report.texts, report.uncounted, report.reference_texts) == (5, 0, 400)
    measures = {(one.measure.head, one.measure.name): one for one in report.measures}
    assert measures["topic", "answers"].observed == (0.6, 0.4, 0.0)
    assert measures["topic", "confidence"].observed[9] == 1.0
    assert measures["", "embedding"].texts == 5
    # One bucket tells nothing yet.
    assert all(one.p_value is None for one in report.measures)


async def test_failed_texts_and_further_windows_are_not_counted(monitor: DriftMonitor, referenced: Model) -> None:
    entries, found = batch(4)
    found[0] = InternalError("1")
    whole = TokenizedText(([2, 5, 3], [2, 6, 3]), 4)
    for number in (1, 2):
        entries[number].tokens, entries[number].ids = whole, whole.windows[number - 1]
    # As in the engine process of --fronts.
    entries[3].tokens = TokenizedText((), 0)
    observe(monitor, referenced, (entries, found))
    assert report_on([monitor.counts()]).texts == 1


async def test_new_model_begins_anew(monitor: DriftMonitor, referenced: Model) -> None:
    old = monitor.watch(referenced)
    assert old
    old(*batch(CHUNK))
    assert report_on([monitor.counts()]).texts == CHUNK
    new = monitor.watch(referenced)
    assert new
    # The old model still answers what it had accepted.
    old(*batch(CHUNK))
    assert report_on([monitor.counts()]).texts == 0
    new(*batch(7))
    assert report_on([monitor.counts()]).texts == 7


async def test_window_forgets(monitor: DriftMonitor, referenced: Model, clock: Clock) -> None:
    observe(monitor, referenced, batch(CHUNK))
    clock.now += 23 * 3600
    assert report_on([monitor.counts()]).texts == CHUNK
    clock.now += 2 * 3600
    assert report_on([monitor.counts()]).texts == 0


async def test_counting_takes_one_percent_of_the_time(monitor: DriftMonitor, referenced: Model, clock: Clock) -> None:
    watch = monitor.watch(referenced)
    assert watch
    clock.cpu_per_look = 0.01
    seconds = 400
    for _ in range(seconds):
        watch(*batch(CHUNK))
        clock.now += 1
    report = report_on([monitor.counts()])
    assert report.texts + report.uncounted == seconds * CHUNK
    assert report.uncounted == 0
    for _ in range(1000):
        watch(*batch(CHUNK))
        clock.now += 0.1
    report = report_on([monitor.counts()])
    assert report.texts + report.uncounted == (seconds + 1000) * CHUNK
    # A hundred seconds pay for a hundred chunks of 0.01 s, and the savings for ten more.
    assert 95 <= report.texts / CHUNK - seconds <= 115


def test_nothing_is_counted_without_a_reference_or_a_window(
    monitor: DriftMonitor, model: Model, referenced: Model, settings: MakeSettings
) -> None:
    assert monitor.watch(model) is None
    with pytest.raises(DriftNotAvailableError, match="fake-dddddddddddd has no reference"):
        report_on([monitor.counts()])
    disabled = DriftMonitor(settings(drift_window_s=0.0))
    assert disabled.watch(referenced) is None
    with pytest.raises(DriftNotAvailableError, match="--drift-window-s 0"):
        report_on([disabled.counts()])


async def test_memory_is_bounded(monitor: DriftMonitor, referenced: Model) -> None:
    watch = monitor.watch(referenced)
    assert watch
    for _ in range(CHUNK - 1):
        watch(*batch(1))
    assert len(monitor._traffic._waiting) == CHUNK - 1  # type: ignore[union-attr]
    watch(*batch(1))
    assert monitor._traffic._waiting == []  # type: ignore[union-attr]


async def test_pipeline_counts_what_it_computes(
    monitor: DriftMonitor, referenced: Model, settings: MakeSettings
) -> None:
    pipeline = Pipeline(referenced, settings(), observe_outcomes=monitor.watch(referenced))
    pipeline.start()
    try:
        await outcomes(pipeline, message("w1 w2", "w3 unheard", " ".join(["w1"] * 30)))
    finally:
        await pipeline.close()
    counts = monitor.counts()
    assert decode(counts)[:, 0].sum() == 3
    measures = {one.measure.name: one for one in report_on([counts]).measures if not one.measure.head}
    assert measures["truncated"].observed[1] == pytest.approx(1 / 3)
    # 2 and 2 tokens, and 14 of the long text.
    assert measures["unknown_tokens"].texts == 18
    assert measures["unknown_tokens"].observed[1] == pytest.approx(1 / 18)

"""When a canary is rolled back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from polyhead_server.candidate.histogram import Latency, LogHistogram
from polyhead_server.candidate.limits import CanaryLimits, SideReport, Window, exceeded, merged
from polyhead_server.candidate.parameters import Answers, CanaryCounts


def side(texts: int = 1000, failed: int = 0, p99_s: float = 0.1) -> SideReport:
    return SideReport(texts, {"INTERNAL": failed} if failed else {}, Latency(texts, p99_s, p99_s, p99_s, p99_s))


def answers(seconds: Sequence[float], failed: int = 0) -> Answers:
    histogram = LogHistogram()
    for value in seconds:
        histogram.add(value)
    return Answers(len(seconds) + failed, {"INTERNAL": failed}, histogram.counts(), histogram.total)


def test_candidate_as_good_as_the_served_model_stays() -> None:
    assert exceeded(CanaryLimits(), side(), side()) is None
    # What fails in both has another reason than the candidate.
    assert exceeded(CanaryLimits(), side(failed=200), side(failed=205)) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (side(failed=20), "2.00% of its texts failed"),
        (side(p99_s=0.3), "more than 2 times the 100 ms"),
    ],
)
def test_candidate_beyond_a_limit_is_named(candidate: SideReport, reason: str) -> None:
    found = exceeded(CanaryLimits(), side(), candidate)
    assert found
    assert reason in found


def test_limit_in_seconds_needs_no_answers_of_the_served_model() -> None:
    assert "the limit 50 ms" in str(exceeded(CanaryLimits(p99_s=0.05), side(texts=0), side()))
    assert exceeded(CanaryLimits(), side(texts=0), side(p99_s=9)) is None


def test_few_texts_decide_nothing() -> None:
    assert exceeded(CanaryLimits(min_texts=100), side(), side(texts=99, failed=99)) is None


def test_limits_that_are_0_do_not_count() -> None:
    assert exceeded(CanaryLimits(p99_ratio=0.0), side(), side(p99_s=9)) is None


def test_window_forgets_what_is_older() -> None:
    window = Window(polls=2)
    bad = CanaryCounts(answers([]), answers([0.1] * 5, failed=5))
    assert window.add([bad])[1].error_rate == 0.5
    good = CanaryCounts(answers([]), answers([0.1] * 105, failed=5))
    assert window.add([good])[1].texts == 110
    later = CanaryCounts(answers([]), answers([0.1] * 205, failed=5))
    _, candidate = window.add([later])
    assert (candidate.texts, candidate.error_rate) == (200, 0.0)


def test_window_ignores_totals_without_one_of_the_processes() -> None:
    window = Window(polls=2)
    good = CanaryCounts(answers([]), answers([0.1] * 100))
    bad = CanaryCounts(answers([]), answers([0.1] * 5, failed=5))
    assert window.add([good, bad])[1].texts == 110
    window.add([good])
    # The window is longer by the one it ignored.
    assert [window.add([good, bad])[1].texts for _ in range(3)] == [110, 0, 0]


def test_counts_of_processes_add_up() -> None:
    both = merged([answers([0.1, 0.2]), answers([0.3], failed=2)])
    assert (both.texts, both.errors["INTERNAL"]) == (5, 2)
    assert both.total_s == pytest.approx(0.6)


def test_process_that_ended_takes_its_counts_along() -> None:
    window = Window(polls=10)
    window.add([CanaryCounts(answers([0.1] * 10), answers([0.1] * 10))])
    served, candidate = window.add([CanaryCounts(answers([0.1]), answers([0.1]))])
    # Those before the window began are all that is left.
    assert (served.texts, candidate.texts) == (1, 1)

from __future__ import annotations

import math

import pytest
from polyhead_client import InvalidRequestError, ItemError, ResourceExhaustedError, UnavailableError
from polyhead_client.core.retry import Deadline, Failure, RetryPolicy, RetryBudget
from polyhead_client.errors import PolyheadError

AWAY = UnavailableError("UNAVAILABLE", "gone")


def retries(
    max_attempts: int = 5, *, left_s: float | None = None, budget: RetryBudget | None = None, jitter: int = 0
) -> RetryPolicy:
    """Retries at a clock that stands still, with the least jitter, or the most."""
    deadline = Deadline(left_s, now=lambda: 100.0)
    return RetryPolicy(max_attempts, budget or RetryBudget(), deadline, uniform=lambda *bounds: bounds[jitter])


def test_server_that_is_away_is_asked_again_after_longer_and_longer() -> None:
    delays = [retries().delay_s(AWAY, attempts) for attempts in range(1, 6)]
    assert delays == [pytest.approx(0.05), pytest.approx(0.15), pytest.approx(0.45), 1.0, None]


@pytest.mark.parametrize(
    ("failure", "delay_s"),
    [
        (UnavailableError("CANCELLED", ""), 0.05),
        (UnavailableError("ABORTED", ""), None),
        (ResourceExhaustedError("RESOURCE_EXHAUSTED", "message too large"), None),
        (ResourceExhaustedError("RESOURCE_EXHAUSTED", "busy", retry_after_s=7.0), 7.0),
        (ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "busy", 0.25), 0.25),
        (UnavailableError("UNAVAILABLE", "draining", retry_after_s=3.0), 3.0),
        (UnavailableError("UNAVAILABLE", "never", retry_after_s=math.inf), None),
        (PolyheadError("INTERNAL", "", retry_after_s=1.0), None),
        (ItemError("INVALID_ARGUMENT", "TEXT_NOT_UTF8", ""), None),
        (ItemError("FAILED_PRECONDITION", "FINGERPRINT_MISMATCH", ""), None),
    ],
)
def test_each_failure_waits_as_told_or_stands(failure: Failure, delay_s: float | None) -> None:
    assert retries().delay_s(failure, 1) == delay_s


def test_jitter_makes_a_wait_longer_and_never_shorter_than_told() -> None:
    failure = ResourceExhaustedError("RESOURCE_EXHAUSTED", "busy", retry_after_s=3.0)
    assert retries(jitter=1).delay_s(failure, 1) == 4.0


def test_no_wait_takes_more_than_half_of_the_time_that_is_left() -> None:
    failure = ResourceExhaustedError("RESOURCE_EXHAUSTED", "busy", retry_after_s=3.0)
    assert retries(left_s=6.1).delay_s(failure, 1) == 3.0
    assert retries(left_s=6.0).delay_s(failure, 1) is None


def test_one_attempt_tries_nothing_again() -> None:
    assert retries(1).delay_s(AWAY, 1) is None


@pytest.mark.parametrize("max_attempts", [0, -1])
def test_less_than_one_attempt_is_refused(max_attempts: int) -> None:
    with pytest.raises(InvalidRequestError, match="max_attempts"):
        retries(max_attempts)


def test_budget_lets_a_wave_of_failures_through_and_then_a_tenth_of_what_succeeds() -> None:
    budget = RetryBudget()
    subject = retries(budget=budget)
    allowed = sum(subject.on_failure(AWAY, 1) is not None for _ in range(2000))
    assert allowed == 499
    for _ in range(10):  # calls that succeed, and one in ten of them that would be tried again
        budget.on_success()
    assert not budget.allows_retry()
    for _ in range(5001):
        budget.on_success()
    assert budget.allows_retry()


def test_failures_that_are_not_tried_again_cost_no_budget() -> None:
    budget = RetryBudget()
    for _ in range(2000):
        retries(budget=budget).on_failure(PolyheadError("INVALID_ARGUMENT", ""), 1)
    assert budget.allows_retry()


def test_budget_of_a_closed_client_allows_nothing() -> None:
    budget = RetryBudget()
    budget.stop()
    assert retries(budget=budget).delay_s(AWAY, 1) is None


def test_deadline_counts_down_from_its_beginning() -> None:
    time = 10.0
    deadline = Deadline(2.0, now=lambda: time)
    time = 13.0
    assert deadline.left_s() == -1.0
    assert Deadline(None).left_s() is None

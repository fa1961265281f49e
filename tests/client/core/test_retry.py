from __future__ import annotations

import math

import pytest
from polyhead_client import InvalidRequestError, ItemError, ResourceExhaustedError, UnavailableError
from polyhead_client.core.retry import Deadline, Failure, RetryBudget, RetryPolicy
from polyhead_client.errors import PolyheadError

UNAVAILABLE = UnavailableError("UNAVAILABLE", "unreachable")


def new_policy(
    max_attempts: int = 5, *, left_s: float | None = None, budget: RetryBudget | None = None, jitter: int = 0
) -> RetryPolicy:
    """Creates a policy on a stopped clock with the minimum (0) or maximum (1) jitter."""
    deadline = Deadline(left_s, now=lambda: 100.0)
    return RetryPolicy(max_attempts, budget or RetryBudget(), deadline, uniform=lambda *bounds: bounds[jitter])


def test_delays_grow_with_each_attempt_until_the_last() -> None:
    delays = [new_policy().delay_s(UNAVAILABLE, attempts) for attempts in range(1, 6)]
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
def test_each_failure_has_its_delay_or_is_final(failure: Failure, delay_s: float | None) -> None:
    assert new_policy().delay_s(failure, 1) == delay_s


def test_jitter_only_increases_a_delay() -> None:
    failure = ResourceExhaustedError("RESOURCE_EXHAUSTED", "busy", retry_after_s=3.0)
    assert new_policy(jitter=1).delay_s(failure, 1) == 4.0


def test_delay_never_exceeds_half_of_the_time_left() -> None:
    failure = ResourceExhaustedError("RESOURCE_EXHAUSTED", "busy", retry_after_s=3.0)
    assert new_policy(left_s=6.1).delay_s(failure, 1) == 3.0
    assert new_policy(left_s=6.0).delay_s(failure, 1) is None


@pytest.mark.parametrize("max_attempts", [0, -1])
def test_fewer_than_one_attempt_is_rejected(max_attempts: int) -> None:
    with pytest.raises(InvalidRequestError, match="max_attempts"):
        new_policy(max_attempts)


def test_budget_allows_a_burst_of_retries_and_then_a_tenth_of_the_successes() -> None:
    budget = RetryBudget()
    subject = new_policy(budget=budget)
    allowed = sum(subject.on_failure(UNAVAILABLE, 1) is not None for _ in range(2000))
    assert allowed == 499
    for _ in range(10):  # successes that refill less than one token
        budget.on_success()
    assert not budget.allows_retry()
    for _ in range(5001):
        budget.on_success()
    assert budget.allows_retry()


def test_final_failures_cost_no_budget() -> None:
    budget = RetryBudget()
    for _ in range(2000):
        new_policy(budget=budget).on_failure(PolyheadError("INVALID_ARGUMENT", ""), 1)
    assert budget.allows_retry()


def test_deadline_counts_down_from_its_creation() -> None:
    time = 10.0
    deadline = Deadline(2.0, now=lambda: time)
    time = 13.0
    assert deadline.left_s() == -1.0
    assert Deadline(None).left_s() is None


@pytest.mark.parametrize("seconds", [math.inf, 1e300, pytest.param(10**400, id="integer"), 1e10])
def test_deadline_beyond_the_range_of_clocks_is_no_limit(seconds: float) -> None:
    assert Deadline(seconds).left_s() is None
    assert Deadline(1e8, now=lambda: 0.0).left_s() == 1e8

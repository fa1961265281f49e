"""Stream states on a manual clock, and server answers for their items."""

from __future__ import annotations

from polyhead.v1 import item_pb2
from polyhead_client import Answer, ItemError
from polyhead_client.choices import Order
from polyhead_client.core.concurrency_limit import ConcurrencyLimit, FixedLimit
from polyhead_client.core.retry import Deadline, RetryBudget, RetryPolicy
from polyhead_client.core.stream_state import StreamState

OVERLOADED = ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "too much", retry_after_s=2.0)


class Clock:
    """A clock that advances when ``time`` is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class RecordingLimit(FixedLimit):
    """A fixed limit that records its notifications."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.events: list[str | int] = []

    def on_full(self) -> None:
        self.events.append("full")

    def on_answers(self, items: int) -> None:
        self.events.append(items)

    def on_overload(self) -> None:
        self.events.append("overload")


def new_state(
    max_in_flight: int = 4,
    max_items: int = 3,
    max_bytes: int = 1000,
    *,
    order: Order = "request",
    max_attempts: int = 5,
    now: Clock | None = None,
    limit: ConcurrencyLimit | None = None,
    budget: RetryBudget | None = None,
) -> StreamState:
    """Creates a state in its first call, whose retries have no jitter."""
    clock = now or Clock()
    retry = RetryPolicy(max_attempts, budget or RetryBudget(), Deadline(None, clock), uniform=lambda low, _: low)
    state = StreamState(
        order, limit or FixedLimit(max_in_flight), retry, max_items=max_items, max_bytes=max_bytes, now=clock
    )
    state.begin_call()
    return state


def offer_all(state: StreamState, texts: str) -> StreamState:
    """Offers each character as a text."""
    for text in texts:
        state.offer(text)
    return state


def answers_to(items: list[item_pb2.Item]) -> list[Answer]:
    """Returns an answer to each item."""
    return [Answer(item.item_id) for item in items]


def rejections_of(items: list[item_pb2.Item], error: ItemError = OVERLOADED) -> list[Answer]:
    """Returns an error answer to each item."""
    return [Answer(item.item_id, error=error) for item in items]


def ids(answers: list[Answer] | list[item_pb2.Item]) -> list[str]:
    """Returns the ids of answers or items."""
    return [answer.item_id for answer in answers]

"""Reorder buffer: returns answers in request order, or as they complete."""

from __future__ import annotations

from polyhead_client.types import Answer


class ReorderBuffer:
    """Holds each answer until all answers before it are there, if the order is the order of the requests."""

    def __init__(self, in_request_order: bool) -> None:
        self._in_request_order = in_request_order
        self._blocked: dict[int, Answer] = {}  # by item number
        self._ready: list[Answer] = []
        self._next = 0  # item number

    @property
    def blocked(self) -> int:
        """Number of answers that wait for an earlier one."""
        return len(self._blocked)

    @property
    def ready(self) -> int:
        """Number of answers that ``pop_ready`` returns."""
        return len(self._ready)

    def add(self, number: int, answer: Answer) -> None:
        """Adds the answer to item ``number``."""
        if not self._in_request_order:
            self._ready.append(answer)
            return
        self._blocked[number] = answer
        while self._next in self._blocked:
            self._ready.append(self._blocked.pop(self._next))
            self._next += 1

    def pop_ready(self) -> list[Answer]:
        """Removes and returns all answers that are ready."""
        answers, self._ready = self._ready, []
        return answers

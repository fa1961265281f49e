from __future__ import annotations

from polyhead_client import Answer
from polyhead_client.core.reorder_buffer import ReorderBuffer


def test_answers_wait_for_those_before_them() -> None:
    buffer = ReorderBuffer(in_request_order=True)
    buffer.add(1, Answer("b"))
    assert (buffer.blocked, buffer.ready, buffer.pop_ready()) == (1, 0, [])
    buffer.add(0, Answer("a"))
    assert (buffer.blocked, buffer.ready) == (0, 2)
    assert buffer.pop_ready() == [Answer("a"), Answer("b")]
    assert buffer.pop_ready() == []


def test_answers_are_ready_at_once_in_completion_order() -> None:
    buffer = ReorderBuffer(in_request_order=False)
    buffer.add(1, Answer("b"))
    assert (buffer.blocked, buffer.pop_ready()) == (0, [Answer("b")])

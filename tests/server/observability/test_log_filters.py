"""Limits of the log: libraries say nothing of a request, and no kind of line fills the log."""

from __future__ import annotations

import logging
import sys

import pytest
from polyhead_server.observability.log_filters import BURST_LINES, LINES_PER_S, RateLimitFilter, redact

HEADER = "Bearer polyhead_secret"


def record(name: str = "polyhead_server.x", line: int = 1, **more: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "/lib/x.py", line, "cannot parse %s", (HEADER,), None)
    made.__dict__.update(more)
    return made


def fail() -> None:
    raise ValueError(HEADER)


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "grpc.aio._server", "asyncio", "concurrent.futures", "root"])
def test_library_line_contains_nothing_of_a_request(name: str) -> None:
    try:
        fail()
    except ValueError:
        line = redact(record(name, exc_info=sys.exc_info()))
    assert HEADER not in line.getMessage()
    assert line.exc_info is None
    assert "ValueError" in line.getMessage()
    assert "x.py:1" in line.getMessage()


@pytest.mark.parametrize("name", ["polyhead_server", "polyhead_server.rpc.stream", "py.warnings"])
def test_own_line_is_unchanged(name: str) -> None:
    assert redact(record(name)).getMessage() == f"cannot parse {HEADER}"


def test_package_with_a_similar_name_is_not_trusted() -> None:
    assert HEADER not in redact(record("polyhead_server_plugin")).getMessage()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_a_kind_are_limited_and_the_next_states_how_many_were_suppressed() -> None:
    clock = Clock()
    limit = RateLimitFilter(clock)
    passed = [limit.filter(record()) for _ in range(1000)]
    assert sum(passed) == BURST_LINES
    assert limit.suppressed == 1000 - BURST_LINES
    clock.now += 1 / LINES_PER_S
    following = record()
    assert limit.filter(following)
    assert following.__dict__["suppressed"] == 1000 - BURST_LINES
    assert not limit.filter(record())


def test_other_kinds_are_not_affected() -> None:
    limit = RateLimitFilter(Clock())
    for _ in range(1000):
        limit.filter(record())
    assert limit.filter(record(line=2))
    assert limit.filter(record(name="polyhead_server.y"))
    assert limit.filter(record(limit_key="shop"))
    assert limit.filter(record(unlimited=True))


def test_memory_of_kinds_is_bounded() -> None:
    limit = RateLimitFilter(Clock())
    for line in range(10_000):
        limit.filter(record(line=line))
    assert len(limit._kinds) <= 1000

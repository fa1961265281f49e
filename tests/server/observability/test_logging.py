"""Log lines as text and as JSON, and the end of a process whose log reports that it is out of memory."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest
from google.protobuf.message import DecodeError
from polyhead_server.observability.logging import (
    REQUEST_CONTEXT,
    TEXT_FORMAT,
    JsonFormatter,
    OutOfMemoryFilter,
    TextFormatter,
    fields,
)


def record(message: str = "done: %s", *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("polyhead_server.x", logging.INFO, "x.py", 1, message, arguments or ("yes",), None)
    made.__dict__.update(more)
    return made


@pytest.fixture
def request_context() -> Iterator[None]:
    token = REQUEST_CONTEXT.set({"request_id": "r-1", "trace_id": "abc"})
    yield
    REQUEST_CONTEXT.reset(token)


@pytest.mark.usefixtures("request_context")
def test_json_line_is_one_object_with_the_ids_of_the_call() -> None:
    line = JsonFormatter().format(record(**fields(method="Analyze", items=2)))
    values = json.loads(line)
    assert "\n" not in line
    assert values["time"].endswith("+00:00")
    assert {
        name: values[name] for name in ("level", "logger", "message", "request_id", "trace_id", "method", "items")
    } == {
        "level": "info",
        "logger": "polyhead_server.x",
        "message": "done: yes",
        "request_id": "r-1",
        "trace_id": "abc",
        "method": "Analyze",
        "items": 2,
    }


def test_json_line_outside_of_calls_has_no_request_id() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(record()))


def test_json_line_contains_the_traceback_as_one_string() -> None:
    try:
        int("odd")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("invalid literal for int() with base 10: 'odd'")


@pytest.mark.usefixtures("request_context")
def test_text_line_contains_the_request_id() -> None:
    assert TextFormatter(TEXT_FORMAT).format(record()).endswith("INFO polyhead_server.x: [r-1] done: yes")


def test_text_line_outside_of_calls_has_no_request_id() -> None:
    assert TextFormatter(TEXT_FORMAT).format(record()).endswith("INFO polyhead_server.x: done: yes")


class Exited(BaseException):
    """The process has exited."""


@pytest.mark.parametrize(
    ("error", "exits"),
    [
        (MemoryError(), True),
        (RuntimeError("broken"), False),
        (DecodeError("Error parsing message"), False),
        (None, False),
    ],
)
def test_record_of_a_lack_of_memory_ends_the_process(
    error: Exception | None, exits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", leave)
    exc_info = (type(error), error, None) if error else None
    line = logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, "", 0, "a call failed", None, exc_info)
    if exits:
        with pytest.raises(Exited):
            OutOfMemoryFilter().filter(line)
    else:
        assert OutOfMemoryFilter().filter(line)

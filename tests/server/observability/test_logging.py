from __future__ import annotations

import json
import logging
import sys

import pytest
from polyhead_server.observability.logging import _TEXT, REQUEST_CONTEXT, JsonFormatter, TextFormatter, fields


def record(message: str = "done: %s", *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("polyhead_server.x", logging.INFO, "x.py", 1, message, arguments or ("yes",), None)
    made.__dict__.update(more)
    return made


@pytest.fixture
def call() -> object:
    token = REQUEST_CONTEXT.set({"request_id": "r-1", "trace_id": "abc"})
    yield
    REQUEST_CONTEXT.reset(token)


def test_json_line_is_one_object_with_what_the_call_is_known_by(call: object) -> None:
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


def test_json_line_holds_the_traceback_as_one_string() -> None:
    try:
        int("odd")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("invalid literal for int() with base 10: 'odd'")


def test_text_line_names_the_request(call: object) -> None:
    assert TextFormatter(_TEXT).format(record()).endswith("INFO polyhead_server.x: [r-1] done: yes")


def test_text_line_outside_of_calls_is_as_ever() -> None:
    assert TextFormatter(_TEXT).format(record()).endswith("INFO polyhead_server.x: done: yes")

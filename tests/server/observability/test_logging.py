"""Log lines as text and as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest
from polyhead_server.observability.logging import (
    MAX_MESSAGE_CHARACTERS,
    REQUEST_CONTEXT,
    TEXT_FORMAT,
    JsonFormatter,
    LogHandler,
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


# A line break to forge a line, an escape sequence, a directional override, a zero-width space, a control character.
HOSTILE = "x\n2026-01-01 ERROR forged\x1b[31m\u202e\u200b\x9b\x00" + "y" * 10_000


def fail() -> None:
    raise ValueError(HOSTILE)


FORMATTERS = [TextFormatter(TEXT_FORMAT), JsonFormatter()]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_hostile_strings_are_escaped_and_cut_wherever_they_stand(formatter: logging.Formatter) -> None:
    try:
        fail()
    except ValueError:
        exc_info = sys.exc_info()
    line = formatter.format(record("a key: %s", HOSTILE, exc_info=exc_info, **fields(key=HOSTILE, method=HOSTILE)))
    shown = json.loads(line) if isinstance(formatter, JsonFormatter) else {"text": line}
    for value in map(str, shown.values()):
        assert all(part.isprintable() for part in value.split("\n"))
        assert not any(part.startswith("2026-01-01") for part in value.split("\n"))
    assert len(line) < 2 * MAX_MESSAGE_CHARACTERS
    assert r"\x1b[31m\u202e\u200b\x9b\x00" in line.replace("\\\\", "\\")


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_traceback_names_the_code(formatter: logging.Formatter) -> None:
    try:
        int("odd")
    except ValueError:
        line = formatter.format(record(exc_info=sys.exc_info()))
    assert "test_logging.py" in line
    assert "int(" in line


def test_line_states_how_many_were_suppressed_before_it() -> None:
    line = TextFormatter(TEXT_FORMAT).format(record(suppressed=12_345))
    assert line.endswith("done: yes (12,345 similar lines suppressed before)")


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_handler_writes_no_details_of_a_library(formatter: logging.Formatter) -> None:
    read, write = os.pipe()
    handler = LogHandler(formatter, write)
    handler.handle(logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, "x.py", 1, "Invalid %s", (HOSTILE,), None))
    handler.handle(logging.LogRecord("polyhead_server.x", logging.INFO, "x.py", 1, "%d", ("no number",), None))
    handler.flush()
    lines = os.read(read, 65536).decode().splitlines()
    os.close(read)
    assert len(lines) == 2
    assert "details are left out" in lines[0]
    assert "could not be formatted" in lines[1]

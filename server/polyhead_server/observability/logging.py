"""Log lines on standard error, as text or JSON; lines of a call carry its request id and trace id.

::

    record -> log_filters: within a rate, redacted -> formatter: one line, escaped -> log_writer: a thread writes
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from polyhead_server.printable import printable

from .log_filters import OutOfMemoryFilter, RateLimitFilter, redact
from .log_writer import LineWriter

# Fields of every line that is logged on behalf of a call: ``request_id``, and ``trace_id`` if the call is traced.
REQUEST_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("polyhead_request", default=MappingProxyType({}))

TEXT_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s:%(request)s %(message)s"
STANDARD_ERROR = 2
# Characters of a message, of one of its fields and of the text of an exception; more are cut.
MAX_MESSAGE_CHARACTERS = 4000
MAX_FIELD_CHARACTERS = 1000
MAX_EXCEPTION_CHARACTERS = 500
# Innermost calls of a traceback.
_MAX_FRAMES = 30
# Seconds that the end of the process waits for the reader of the log.
_FLUSH_TIMEOUT_S = 1.0


def configure(level: str, log_format: str) -> None:
    """Sends log lines to standard error.

    Args:
        level: Minimum level, such as ``info``.
        log_format: ``text`` or ``json``.
    """
    # A process that was started without standard error has opened something else as descriptor 2 by now.
    descriptor = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else STANDARD_ERROR
    formatter = JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT)
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(formatter, descriptor)])
    logging.captureWarnings(capture=True)


def fields(**values: Any) -> dict[str, Any]:
    """Returns the ``extra`` argument of a log call. JSON lines show the values; the text must contain them as well."""
    return {"fields": values}


def print_line(text: str) -> None:
    """Prints why the process ends: as it stands, or as an object of a JSON log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            handler.print_line(text)


def dropped_lines() -> dict[str, int]:
    """Returns the number of lines that were not written since the start, by reason."""
    dropped = {"queue_full": 0, "rate_limit": 0}
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            dropped = {"queue_full": handler.writer.dropped, "rate_limit": handler.rate_limit.suppressed}
    return dropped


class LogHandler(logging.Handler):
    """Filters and formats records and hands the lines to a thread, which alone waits for the reader of the log.

    Attributes:
        writer: Writes the lines.
        rate_limit: Limits the lines of each kind.
    """

    def __init__(self, formatter: logging.Formatter, descriptor: int = STANDARD_ERROR) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.rate_limit = RateLimitFilter()
        for one in (OutOfMemoryFilter(), self.rate_limit):
            self.addFilter(one)
        self.writer = LineWriter(descriptor, self._dropped_notice)

    def emit(self, record: logging.LogRecord) -> None:
        """Hands over a line."""
        try:
            self.writer.write(self.format(redact(record)))
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not fail what it reports
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """States that a record could not be formatted; ``logging`` would write to standard error itself."""
        self.writer.write(f"a log line of {record.name}, {record.pathname}:{record.lineno} could not be formatted")

    def print_line(self, text: str) -> None:
        """Writes a line that is not a record; in a JSON log it becomes one."""
        if isinstance(self.formatter, JsonFormatter):
            text = self.format(logging.LogRecord(__name__, logging.CRITICAL, __file__, 0, text, None, None))
        self.writer.write(text)

    def flush(self) -> None:
        """Waits for the reader of the log, but not for long."""
        self.writer.flush(_FLUSH_TIMEOUT_S)

    def _dropped_notice(self, lines: int) -> str:
        message = f"{lines:,} log lines were dropped while standard error was not read"
        return self.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text, followed by the lines of its traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record, with the request id of its call in brackets."""
        request_id = REQUEST_CONTEXT.get().get("request_id")
        record.request = f" [{request_id}]" if request_id else ""
        record.message = _message(record)
        record.asctime = self.formatTime(record, self.datefmt)
        line = self.formatMessage(record)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Formats a traceback; the texts of exceptions are escaped and cut."""
        return _traceback(ei)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record; a traceback becomes one string."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": _message(record),
            **REQUEST_CONTEXT.get(),
            **{name: _value(value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            values["exception"] = _traceback(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=_value)


def _message(record: logging.LogRecord) -> str:
    message = printable(record.getMessage(), MAX_MESSAGE_CHARACTERS)
    suppressed = getattr(record, "suppressed", 0)
    return f"{message} ({suppressed:,} similar lines suppressed before)" if suppressed else message


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(str(value), MAX_FIELD_CHARACTERS)


def _traceback(exc_info: Any) -> str:
    kind, error, frames = exc_info
    lines: list[str] = []
    for chunk in traceback.TracebackException(kind, error, frames, limit=-_MAX_FRAMES, compact=True).format():
        # The lines of a frame are code. Those of an exception may contain anything, so that it must stay on one line.
        code = chunk.startswith('  File "')
        parts = chunk.rstrip("\n").split("\n") if code else [chunk.strip("\n")]
        lines += [printable(part, MAX_EXCEPTION_CHARACTERS) for part in parts]
    return "\n".join(lines)

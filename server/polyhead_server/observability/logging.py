"""Log lines on standard error, as text or JSON; lines of a call carry its request id and trace id."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from polyhead_server.out_of_memory import exit_if_out_of_memory

# Fields of every line that is logged on behalf of a call: ``request_id``, and ``trace_id`` if the call is traced.
REQUEST_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("polyhead_request", default=MappingProxyType({}))

TEXT_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s:%(request)s %(message)s"


def configure(level: str, log_format: str) -> None:
    """Sends log lines to standard error.

    Args:
        level: Minimum level, such as ``info``.
        log_format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT))
    handler.addFilter(OutOfMemoryFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def fields(**values: Any) -> dict[str, Any]:
    """Returns the ``extra`` argument of a log call. JSON lines show the values; the text must contain them as well."""
    return {"fields": values}


class OutOfMemoryFilter(logging.Filter):
    """Ends the process when gRPC logs an out-of-memory error that it has caught itself.

    The server's own boundaries (RPCs, threads, the event loop) call ``exit_if_out_of_memory`` explicitly. gRPC's
    Cython core runs outside of them: it allocates messages and serializes responses itself, catches whatever that
    raises, and only logs it. Its log record is the one place where the server learns of the error.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes every record, unless it ends the process."""
        if record.exc_info and record.name.partition(".")[0] == "grpc":
            exit_if_out_of_memory(record.exc_info[1])
        return True


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record, with the request id of its call in brackets."""
        request_id = REQUEST_CONTEXT.get().get("request_id")
        record.request = f" [{request_id}]" if request_id else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record; a traceback becomes one string."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **REQUEST_CONTEXT.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)

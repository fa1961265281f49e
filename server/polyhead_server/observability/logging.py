"""Log lines on standard error, as text or as JSON; those of a call carry its ids."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from polyhead_server import memory

# What every line says that is written on behalf of a call: its request id, and its trace's id where it is traced.
REQUEST_CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("polyhead_call", default=MappingProxyType({}))

_TEXT = "%(asctime)s %(process)d %(levelname)s %(name)s:%(call)s %(message)s"


def configure(level: str, form: str) -> None:
    """Sends the log to standard error, and ends the process when it tells of a lack of memory.

    Args:
        level: Of the least important lines that are written, such as ``info``.
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    handler.addFilter(memory.OutOfMemoryFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def fields(**values: Any) -> dict[str, Any]:
    """The argument ``extra`` of a line, whose values become keys of its own in JSON; its text must say them as well."""
    return {"fields": values}


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the call's request id in brackets."""
        request_id = REQUEST_CONTEXT.get().get("request_id")
        record.call = f" [{request_id}]" if request_id else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """A line for programs: one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. A traceback is one string of it."""
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

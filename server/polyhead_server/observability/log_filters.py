"""What may become a log line: nothing that a caller has sent to a library, and no kind of line without a limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from polyhead_server.out_of_memory import exit_if_out_of_memory

# Loggers whose lines contain nothing that a caller chooses unless the server logs it deliberately: its own packages,
# Python's warnings, and the exporter of traces, which names its endpoint and the failure.
_TRUSTED_LOGGERS = ("polyhead_server", "polyhead_bundle", "polyhead_training", "py.warnings", "opentelemetry.exporter")
# Lines of one kind that may be logged at once, and per second after that.
BURST_LINES = 20
LINES_PER_S = 1.0
# More kinds than the code of the server and its libraries contains.
_MAX_KINDS = 1000


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


class RateLimitFilter(logging.Filter):
    """Limits the lines of each kind to a burst and a rate, so that no caller can fill the log.

    A kind is a place in the code, and what the ``limit_key`` of a record adds: a value of which there are few, such as
    the name of an API key. The next line of a kind states how many were suppressed before it. Records with a true
    ``unlimited`` pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.suppressed = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes a record within the limit of its kind."""
        if getattr(record, "unlimited", False):
            return True
        name = (record.name, record.pathname, record.lineno, getattr(record, "limit_key", ""))
        with self._lock:
            kind = self._kinds.get(name)
            if kind is None:
                if len(self._kinds) >= _MAX_KINDS:
                    self._kinds.clear()
                kind = self._kinds[name] = _Kind(self._clock())
            if not kind.take(self._clock()):
                self.suppressed += 1
                return False
            record.__dict__["suppressed"], kind.suppressed = kind.suppressed, 0
        return True


class _Kind:
    """The token bucket of one kind of line."""

    __slots__ = ("_at", "_tokens", "suppressed")

    def __init__(self, now: float) -> None:
        self.suppressed = 0
        self._tokens = float(BURST_LINES)
        self._at = now

    def take(self, now: float) -> bool:
        self._tokens = min(float(BURST_LINES), self._tokens + (now - self._at) * LINES_PER_S)
        self._at = now
        if self._tokens < 1:
            self.suppressed += 1
            return False
        self._tokens -= 1
        return True


def redact(record: logging.LogRecord) -> logging.LogRecord:
    """Returns a record of a trusted logger; of any other, only what no caller can choose.

    That is the logger, the place in the code and the type of the exception. gRPC logs metadata that is not UTF-8, with
    the API key in it, and other libraries quote what they cannot parse.
    """
    if any(record.name == name or record.name.startswith(f"{name}.") for name in _TRUSTED_LOGGERS):
        return record
    error = record.exc_info[0] if record.exc_info else None
    what = f"{error.__name__} was logged" if error else "a message was logged"
    place = f"{Path(record.pathname).name}:{record.lineno}"
    message = f"{what} at {place}; details are left out because they may contain data of a request"
    reduced = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, message, None, None)
    reduced.__dict__["suppressed"] = getattr(record, "suppressed", 0)
    return reduced

"""Runs ``polyhead-serve`` without one of its protections, for controls.

    python tests/reliability/unprotected_server.py PROTECTION polyhead-serve BUNDLE [FLAG...]

The protection is removed from the process that is started, not from its workers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_FOREVER_S = 1e6


def _library_lines() -> None:
    """Logs what libraries log, as often as they log it."""
    from polyhead_server.observability import log_filters, logging

    vars(logging)["redact"] = lambda record: record
    log_filters.RateLimitFilter.filter = lambda *_: True  # type: ignore[method-assign]


def _log_thread() -> None:
    """Writes log lines in the thread that logs."""
    from polyhead_server.observability.log_writer import LineWriter

    def write(self: LineWriter, line: str) -> None:
        os.write(self._descriptor, line.encode() + b"\n")

    LineWriter.write = write  # type: ignore[method-assign]


def _metrics_bounds() -> None:
    """Accepts any number of connections to the metrics, for any time."""
    from polyhead_server.observability.scrape_server import ScrapeServer

    ScrapeServer.__init__.__defaults__ = (_FOREVER_S, sys.maxsize)


def _reload_queue() -> None:
    """Runs every reload that is requested."""
    from polyhead_server.lifecycle.reload_queue import ReloadQueue

    async def request(self: ReloadQueue[Any], *, force: bool) -> Any:
        async with self._running:
            return await self._reload(force)

    ReloadQueue.request = request  # type: ignore[method-assign]


def _response_timeout() -> None:
    """Waits for a worker as long as it takes."""
    from polyhead_server.workers import commands

    commands._RESPONSE_TIMEOUT_S = _FOREVER_S


def _file_thread() -> None:
    """Reads changed files on the event loop, whatever kind of file they are."""
    from polyhead_server.security import api_keys
    from polyhead_server.security.file_watcher import ReloadingFile

    def value(self: ReloadingFile[Any]) -> Any:
        self.refresh()
        return self._value

    ReloadingFile.value = value  # type: ignore[method-assign]
    vars(api_keys)["read_bytes"] = lambda path, _: Path(path).read_bytes()


PROTECTIONS = {
    "library-lines": _library_lines,
    "log-thread": _log_thread,
    "metrics-bounds": _metrics_bounds,
    "reload-queue": _reload_queue,
    "response-timeout": _response_timeout,
    "file-thread": _file_thread,
}


def without(protection: str) -> list[str]:
    """Returns the command that runs a server without a protection, as ``wrap`` of ``processes.start_server``."""
    return [sys.executable, "-P", __file__, protection]


if __name__ == "__main__":
    PROTECTIONS[sys.argv[1]]()
    from polyhead_server.cli import main

    main(args=sys.argv[3:], prog_name="polyhead-serve")

"""Runs the work of a server process on an event loop, from its settings to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, cast

import click
from polyhead.commands import missing_package

from polyhead_server.errors import StartupError
from polyhead_server.interpreter import configure_interpreter
from polyhead_server.observability.logging import configure, print_line
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.printable import printable
from polyhead_server.settings import Settings

from . import stop_signals
from .stop_signals import EXIT_FAILED

logger = logging.getLogger(__name__)

# Exit code of a process that cannot start as configured; starting it again would not help.
EXIT_CANNOT_START = 2
# Every connection takes a file descriptor. Below this many, a few clients can take all of them.
_FEW_DESCRIPTORS = 4096


class ServerFailedError(Exception):
    """The server cannot continue. Reported as one line, without a traceback."""


def run(
    settings: Settings, work: Callable[[Settings], Coroutine[Any, Any, int]], *, fast_loop: bool = True
) -> NoReturn:
    """Runs ``work`` on an event loop, logging to standard error, and ends the process with the exit code it returns.

    A ``StartupError`` ends the process with code 2 and a ``ServerFailedError`` with code 1, each after one line of
    text; any other exception is logged with its traceback and ends it with code 1.

    Args:
        settings: Settings of the server.
        work: The work of the process.
        fast_loop: Run on uvloop, for a process that answers calls, instead of on asyncio's own loop.
    """
    if fast_loop:
        stop_signals.block()
    # The default action would end a process that is not ready to reload yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_interpreter()
    configure(settings.log_level, settings.log_format)
    _raise_descriptor_limit()
    # Below a warning, the library's own lines do not concern an operator.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    _watch_threads()
    try:
        with asyncio.Runner(loop_factory=_uvloop if fast_loop else None) as runner:
            code = runner.run(_guarded(work(settings)))
    except StartupError as error:
        print_line(_report_line(error))
        code = EXIT_CANNOT_START
    except ServerFailedError as error:
        print_line(_report_line(error))
        code = EXIT_FAILED
    except ModuleNotFoundError as error:
        report(StartupError(missing_package(error, "server")))
        code = EXIT_CANNOT_START
    except BaseException as error:
        exit_if_out_of_memory(error)
        if not isinstance(error, Exception):
            raise
        logger.exception("the server failed")
        code = EXIT_FAILED
    logging.shutdown()
    # A thread may still be computing or loading a model. A normal exit would finalize the interpreter under it and
    # abort the process.
    os._exit(code)


def _raise_descriptor_limit() -> None:
    """Raises the limit of open files and sockets as far as the system allows; warns if that is not far."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if 0 <= limit < _FEW_DESCRIPTORS:
        # Imports prometheus_client, which a worker must configure first.
        from polyhead_server.observability.scrape_server import MAX_CONNECTIONS

        logger.warning(
            "at most %d files and connections may be open; raise the hard limit (ulimit -Hn, LimitNOFILE=) to at least "
            "%d. The metrics address takes at most %d of them",
            limit,
            _FEW_DESCRIPTORS,
            MAX_CONNECTIONS,
        )


def report(error: Exception) -> None:
    """Prints an error on standard error, for a command that has not configured the log."""
    click.echo(_report_line(error), err=True)


def _report_line(error: Exception) -> str:
    return "\n".join(map(printable, f"polyhead-serve: {error}".split("\n")))


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


async def _guarded(work: Coroutine[Any, Any, int]) -> int:
    """Runs ``work`` on a loop that ends the process when a task or a callback of the loop runs out of memory."""
    asyncio.get_running_loop().set_exception_handler(_handle_loop_error)
    try:
        return await work
    finally:
        # Closing the loop waits for its threads.
        stop_signals.exit_in_time()


def _handle_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    exit_if_out_of_memory(error)
    if error:
        # The message of asyncio quotes the task or the callback with its arguments.
        logger.error("unexpected error on the event loop", exc_info=error)
    else:
        loop.default_exception_handler(context)


def _watch_threads() -> None:
    """Logs what a thread, a callback from C or a finalizer raises; out of memory, it ends the process."""

    def on_thread_error(arguments: threading.ExceptHookArgs) -> None:
        exit_if_out_of_memory(arguments.exc_value)
        if arguments.exc_type is not SystemExit:
            logger.error("unexpected error in a thread", exc_info=arguments.exc_value)

    def on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        exit_if_out_of_memory(unraisable.exc_value)
        logger.error("unexpected error outside of any call", exc_info=unraisable.exc_value)

    threading.excepthook, sys.unraisablehook = on_thread_error, on_unraisable

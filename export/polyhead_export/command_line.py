"""What the commands of polyhead-export share: messages and exit codes."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FREE_SPACE_HINT = "existing files are unchanged; free some space and run the same command again"


@contextmanager
def command() -> Iterator[None]:
    """Runs a command: reports its duration on success, and exits with one line of explanation on an error."""
    from polyhead.commands import missing_package
    from polyhead_bundle import BundleError
    from polyhead_training.errors import TrainingError
    from polyhead_training.units import format_duration

    from .errors import ExportError

    started = time.monotonic()
    try:
        yield
    except (BundleError, TrainingError) as error:
        _fail(error, 2)
    except ExportError as error:
        _fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        _fail(ImportError(missing_package(error, "export")), 2)
    except OSError as error:
        _fail(OSError(f"{error}; {_FREE_SPACE_HINT}") if error.errno in _DISK_FULL else error, 1)
    report(f"done in {format_duration(time.monotonic() - started)}")


def report(line: str) -> None:
    """Prints a line to stderr."""
    click.echo(line, err=True)


def _fail(error: Exception, code: int) -> None:
    report(f"polyhead-export: {' '.join(str(error).split())}")
    sys.exit(code)

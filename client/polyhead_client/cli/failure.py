"""How a command ends that fails: with one line on stderr, or silently if nobody reads its output."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

import click

from .printable import printable

if TYPE_CHECKING:  # gRPC takes longer to import than --help should take
    from polyhead_client.errors import PolyheadError


class CommandError(click.ClickException):
    """Ends the command with ``polyhead: MESSAGE`` on stderr and ``exit_code`` as its exit status."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance or the class

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the message as one line."""
        click.echo(f"polyhead: {self.message}", file=file, err=file is None)


def describe(target: str, error: PolyheadError) -> str:
    """Formats an error of a call to ``target``, which stands in front unless the message names it."""
    return str(error) if target in error.message else f"{target}: {error}"


def is_unexplained(error: PolyheadError) -> bool:
    """Whether the server is unavailable, and nobody knows why."""
    from polyhead_client.errors import UnavailableError

    return isinstance(error, UnavailableError) and not error.reason


def discard_stdout() -> None:
    """Redirects stdout to nowhere: Python flushes it once more at exit, and would report a broken pipe again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

"""Imports of the packages that an extra installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polyhead.commands import missing_package


@contextmanager
def provided_by(extra: str) -> Iterator[None]:
    """Names the extra when a package that is imported inside the block is not installed.

    Args:
        extra: The extra that installs the packages.

    Raises:
        ModuleNotFoundError: A package is not installed; the message contains the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"polyhead_adapters {missing_package(error, extra)}"
        raise ModuleNotFoundError(message, name=error.name) from None

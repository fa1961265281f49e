"""``polyhead-serve --check``: verifies all that a start with the same settings would read, without listening."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from polyhead_server.collection import collector
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import check_bundle
from polyhead_server.observability.logging import configure
from polyhead_server.security import api_keys
from polyhead_server.security.tls import Certificates
from polyhead_server.settings import Settings

from .entry import EXIT_CANNOT_START, report


def run_check(settings: Settings) -> NoReturn:
    """Reports each check that passed on standard error, then each bundle on standard output, and ends the process.

    The exit code is 0, or 2 after a failed check, whose error is the last line.
    """
    # Warnings of the start would be printed here too; the lines about success are this command's own.
    configure("warning", settings.log_format)
    try:
        for line in check(settings):
            click.echo(line, err=True)
    except StartupError as error:
        report(error)
        sys.exit(EXIT_CANNOT_START)
    finally:
        logging.shutdown()
    for own in settings.of_models():
        click.echo(own.bundle)
    sys.exit(0)


def check(settings: Settings) -> Iterator[str]:
    """Verifies certificate, API keys, what collecting requires, and bundles.

    Yields:
        One line per check that passed.

    Raises:
        StartupError: The server could not start, or not answer as the bundle states.
    """
    if Certificates.from_settings(settings):
        yield f"certificate {settings.tls_cert} is valid"
    if settings.api_keys:
        yield f"{settings.api_keys}: {len(api_keys.read(Path(settings.api_keys)))} keys"
    if settings.collect:
        collector.check(settings)
        yield f"texts can be collected in {settings.collect}"
    for own in settings.of_models():
        yield from (f"{own.served_name}: {line}" if settings.models else line for line in check_bundle(own))

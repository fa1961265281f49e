"""The command ``polyhead`` in the process of the tests; tests/e2e/test_commands.py runs the installed one."""

from __future__ import annotations

from click.testing import CliRunner
from polyhead_client.cli.main import main


def polyhead(*arguments: str) -> tuple[int, str, str]:
    """Runs the command; returns its exit code, its standard output and its standard error."""
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.stdout, done.stderr

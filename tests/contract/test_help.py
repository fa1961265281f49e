"""The help of every command keeps its layout."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from polyhead_client.cli.main import main as client
from polyhead_export.cli import main as export
from polyhead_server.cli import main as serve
from polyhead_server.security.api_keys import main as keys
from polyhead_training.cli import main as train


def commands(command: click.Command, *names: str) -> Iterator[tuple[click.Command, list[str]]]:
    yield command, list(names)
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, *names, name)


NAMES = ["polyhead", "export", "keys", "serve", "train"]


@pytest.mark.parametrize("main", [client, export, keys, serve, train], ids=NAMES)
def test_help_keeps_marked_lines(main: click.Command) -> None:
    """click removes the mark for kept lines only if it is a real backspace; a raw docstring would print it."""
    for command, names in commands(main):
        result = CliRunner().invoke(main, [*names, "--help"])
        assert result.exit_code == 0, names
        assert "\\b" not in result.stdout, names
        assert command.help, names

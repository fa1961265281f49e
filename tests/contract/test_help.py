"""The help of every command keeps its layout."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

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


@pytest.mark.parametrize("main", [client, export, keys, serve, train], ids=NAMES)
def test_short_help_flag_prints_the_help(main: click.Command) -> None:
    for _, names in commands(main):
        short, full = (CliRunner().invoke(main, [*names, flag]) for flag in ("-h", "--help"))
        assert (short.exit_code, short.stdout) == (0, full.stdout), names


@pytest.mark.parametrize(
    ("main", "program"),
    [(client, "polyhead"), (export, "polyhead-export"), (serve, "polyhead-serve"), (train, "polyhead-train")],
)
def test_version_flag_prints_program_and_version(main: click.Command, program: str) -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{program} {version('polyhead')}\n")

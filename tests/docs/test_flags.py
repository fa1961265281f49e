"""Every flag and environment variable that a page mentions exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from polyhead_client.cli.main import main as client
from polyhead_export.cli import main as export
from polyhead_server.cli import main as serve
from polyhead_server.security.api_keys import main as api_keys
from polyhead_training.cli import main as train

from tests.support.demo import ROOT

# The changelog names flags that no longer exist, the generated pages those of the benchmark programs.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md")))
    if path.name != "CHANGELOG.md" and "Written by" not in path.read_text()[:80]
}
# Flags of other programs, in running text.
FOREIGN = {
    "--local-dir": "hf download",
    "--no-healthcheck": "docker run",
    "--require-hashes": "pip",
    "--required": "deploy/audit.py",
}
# Variables that no flag has: the client reads the key, and tests the folder with public data.
VARIABLES = {"POLYHEAD_API_KEY", "POLYHEAD_DATA", "POLYHEAD_ADMIN_TARGET"}


def options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    yield "--help"
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            nested = command.get_command(click.Context(command), name)
            assert nested is not None
            yield from options(nested)


FLAGS = {option for command in (client, export, serve, api_keys, train) for option in options(command)}


def mentioned(text: str) -> set[str]:
    """Flags in inline code, and in commands of this project."""
    code = [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text), *re.findall(r"^\$ (polyhead.*)$", text, re.MULTILINE)]
    return {flag for one in code for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", re.sub(r"\s#.*", "", one))}


@pytest.mark.parametrize("page", PAGES)
def test_flags_of_page_exist(page: str) -> None:
    assert mentioned(PAGES[page]) - FLAGS - set(FOREIGN) == set()


@pytest.mark.parametrize("page", PAGES)
def test_variables_of_page_exist(page: str) -> None:
    known = {f"POLYHEAD_{flag[2:].upper().replace('-', '_')}" for flag in FLAGS}
    assert set(re.findall(r"\bPOLYHEAD_[A-Z_]+[A-Z]\b", PAGES[page])) - known - VARIABLES == set()


def test_flag_that_does_not_exist_is_found() -> None:
    page = "Use `--drain-timeout-s`, or `--drain-s 3`.\n\n```console\n$ polyhead info --jsno  # --comment\n```\n"
    assert mentioned(page) == {"--drain-timeout-s", "--drain-s", "--jsno"}
    assert "--drain-timeout-s" in FLAGS
    assert not {"--drain-s", "--jsno"} & FLAGS

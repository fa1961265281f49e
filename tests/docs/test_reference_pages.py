"""The references of configuration and command line are those of the code, and complete."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from polyhead_server.settings import MIN_VALUES, Settings
from polyhead_training.config import Config
from pydantic import BaseModel, ConfigDict

from docs import reference_pages
from docs.reference_pages import MissingTextError, cli_page, commands, configuration_page

PAGES = reference_pages.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == PAGES[path], "run `make references`"


def test_every_key_of_the_training_configuration_has_a_row() -> None:
    schema = Config.model_json_schema()
    page = configuration_page()
    for model in (*schema["$defs"].values(), schema):
        for key in model["properties"]:
            assert f"| `{key}` |" in page


def test_every_server_setting_has_a_row_with_its_default_and_limit() -> None:
    page = configuration_page()
    for field in dataclasses.fields(Settings):
        if "help" in field.metadata:
            assert f"| `--{field.name.replace('_', '-')}` | `POLYHEAD_{field.name.upper()}` |" in page
    assert set(MIN_VALUES) <= {field.name for field in dataclasses.fields(Settings)}
    row = next(line for line in page.splitlines() if line.startswith("| `--drain-timeout-s` |"))
    assert "| number | seconds, at least 0 | `30.0` |" in row


def test_option_has_flags_variable_default_and_meaning() -> None:
    assert "| `--target` `HOST:PORT` | `POLYHEAD_TARGET` | `127.0.0.1:50051` | Address of the server" in cli_page()


def test_help_is_shown_with_its_examples_as_code() -> None:
    page = cli_page()
    assert '```text\npolyhead analyze "Where is my refund?"\n' in page
    assert "\b" not in page


class _Undocumented(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    known: int = 1
    """Has a docstring."""
    unknown: int = 2


def test_key_without_docstring_is_an_error() -> None:
    with pytest.raises(MissingTextError, match=r"_Undocumented\.unknown has no docstring"):
        list(reference_pages._fields("_Undocumented", _Undocumented.model_json_schema()))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (click.Command("tool", params=[click.Option(["--flag"], help="Text.")]), "tool has no help text"),
        (click.Command("tool", help="Text.", params=[click.Option(["--flag"])]), "tool --flag has no help text"),
    ],
)
def test_command_without_help_is_an_error(command: click.Command, message: str) -> None:
    (context,) = commands(command, "tool")
    with pytest.raises(MissingTextError, match=message):
        list(reference_pages._command(context))


def test_limits_are_written_out() -> None:
    assert MIN_VALUES["max_held_bytes"] == 2**20
    assert "bytes, at least 1,048,576" in configuration_page()

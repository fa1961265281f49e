"""Nothing that a release promised by name is gone: commands, keys, metrics, errors, HTTP fields, Python names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import pytest
from pydantic import BaseModel, Field

from . import promises as kinds
from .promises import promises
from .renew import PROMISES, read, renew_promises

BROKEN = (
    "docs/reference/stability.md promises these; keep them, or remove them with the major version and "
    '`python -m tests.compat.renew --breaking "REASON"`'
)


@pytest.fixture(scope="module")
def holding() -> dict[str, set[str]]:
    """What holds now, by kind."""
    return promises()


@pytest.mark.parametrize("kind", sorted(path.stem for path in PROMISES.iterdir()))
def test_every_promise_holds(kind: str, holding: dict[str, set[str]]) -> None:
    promised = read(PROMISES / f"{kind}.txt")
    assert promised
    assert sorted(promised - holding[kind]) == [], BROKEN


def test_every_kind_of_promise_has_a_file(holding: dict[str, set[str]]) -> None:
    assert {path.stem for path in PROMISES.iterdir()} == set(holding)


def test_renewal_adds_promises(tmp_path: Path) -> None:
    path = tmp_path / "promises/errors.txt"
    path.parent.mkdir()
    path.write_text("INTERNAL INTERNAL\n")
    assert renew_promises(path, {"INTERNAL INTERNAL", "NOT_FOUND NEW"}, None) == []
    assert read(path) == {"INTERNAL INTERNAL", "NOT_FOUND NEW"}
    assert (tmp_path / "removed.txt").read_text() == ""


def test_renewal_removes_a_promise_only_for_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "promises/errors.txt"
    path.parent.mkdir()
    path.write_text("INTERNAL INTERNAL\nNOT_FOUND OLD\n")
    assert renew_promises(path, {"INTERNAL INTERNAL"}, None) == ["NOT_FOUND OLD"]
    assert read(path) == {"INTERNAL INTERNAL", "NOT_FOUND OLD"}
    assert renew_promises(path, {"INTERNAL INTERNAL"}, "nobody sends it") == ["NOT_FOUND OLD"]
    assert read(path) == {"INTERNAL INTERNAL"}
    assert (tmp_path / "removed.txt").read_text().endswith(": NOT_FOUND OLD: nobody sends it\n")


@click.command
@click.argument("texts", nargs=-1)
@click.option("--mode", type=click.Choice(["fast", "exact"]), envvar="MODE")
@click.option("--target", required=True)
def _command(**_: object) -> None:
    """A command."""


def test_command_line_names_arguments_required_options_choices_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "PROGRAMS", {"program": _command})
    found = {line for line in kinds.command_line() if "--help" not in line}
    assert found == {
        "program [TEXTS...] --target",
        "program --mode (value)",
        "program --mode = $MODE",
        "program --mode fast",
        "program --mode exact",
    }


def test_configuration_names_keys_and_types() -> None:
    class Part(BaseModel):
        rate: Annotated[float, Field(gt=0)] = 0.1

    class Whole(BaseModel):
        name: str
        parts: tuple[Part, ...] = ()
        limit: int | None = None

    assert set(kinds.configuration("whole", Whole)) == {
        "whole.name (required): string",
        "whole.parts: list of Part",
        "whole.limit: integer",
        "whole.limit: null",
        "Part.rate: number",
    }


def test_signature_names_required_parameters_together_and_others_apart() -> None:
    def function(path: str, depth: int, name: str = "", *more: str, key: str, deep: bool = False) -> None: ...

    assert set(kinds.signature("function", function)) == {
        "function(path, depth, key=)",
        "function(2: name=)",
        "function(*more)",
        "function(deep=)",
    }

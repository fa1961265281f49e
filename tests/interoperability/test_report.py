"""The generated page and the stored results, without running any client."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from .comparison import CLEAR
from .environments import CLIENTS, REQUIREMENTS
from .report import PAGE, RESULTS, render
from .run import problems


def stored() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def registered(client: str) -> set[tuple[str, str]]:
    """The kinds and names that a client's module registers, read without importing it: the client is not installed."""
    path = REQUIREMENTS.parent / f"clients/{client}.py"
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in getattr(node, "decorator_list", []):
            kind = getattr(decorator.func, "id", "")
            if kind in {"call", "mistake", "limitation"}:
                found.add((kind, decorator.args[0].value))
    return found


def test_committed_page_is_generated_from_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(stored())


@pytest.mark.parametrize("client", CLIENTS)
def test_results_have_the_calls_of_the_code_and_none_failed(client: str) -> None:
    result = stored()["clients"][client]
    made = {("call", row["call"]) for row in result["calls"]}
    made |= {(row["kind"], row["call"]) for row in result["refusals"] if "API key" not in row["call"]}
    assert made == registered(client)
    assert problems(result) == []


@pytest.mark.parametrize("client", [client for client in CLIENTS if (REQUIREMENTS / f"{client}.txt").exists()])
def test_results_are_of_the_pinned_versions(client: str) -> None:
    pinned = (REQUIREMENTS / f"{client}.txt").read_text().partition("#")[0].split()
    assert [f"{name}=={version}" for name, version in stored()["clients"][client]["versions"].items()] == pinned


def test_every_mistake_has_a_criterion() -> None:
    assert {name for client in CLIENTS for kind, name in registered(client) if kind == "mistake"} <= CLEAR.keys()


def test_failed_call_is_marked_and_vertical_bars_do_not_end_a_cell() -> None:
    row = {"call": "c", "protocol": "p", "plain": {"error": "a | b"}, "protected": {"skipped": "no TLS"}}
    refusal = {"call": "empty list", "protocol": "p", "kind": "mistake", "raised": None, "is_clear": False}
    result = {"versions": {"x": "1"}, "calls": [row], "refusals": [refusal]}
    page = render(stored() | {"clients": {"x": result}})
    assert "| x 1 | c | p | **fails**: `a / b` | not possible: no TLS |  |" in page
    assert "| empty list | x | p | **nothing** | no |" in page
    assert problems({"calls": [row | {"protected": {"difference": 0.0}}], "refusals": [refusal]}) == [
        "c (plain): a | b",
        "empty list is accepted",
    ]

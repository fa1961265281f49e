"""Tests of the generated page."""

from __future__ import annotations

import json

from .report import PAGE, RESULTS, render
from .run import load_scenarios
from .scenario import SCENARIOS


def test_committed_page_is_generated_from_the_committed_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(json.loads(RESULTS.read_text(encoding="utf-8")))


def test_committed_results_describe_the_scenarios_of_the_code() -> None:
    load_scenarios()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["scenarios"]
    described = {name: (one["fault"], one["expected"]) for name, one in results.items()}
    assert described == {name: (one.fault, one.expected) for name, one in SCENARIOS.items()}
    assert list(described) == list(SCENARIOS)


def test_unexpected_result_is_marked_and_vertical_bars_do_not_end_a_cell() -> None:
    result = {
        "fault": "a | b",
        "expected": "c",
        "observed": "d",
        "control": "e",
        "passed": False,
        "control_failed": True,
        "load_average": 0.5,
    }
    page = render({"date": "2000-01-01", "cores": 2, "scenarios": {"name": result}})
    assert "| A / b | C | **Not as expected:** D | E |" in page
    assert "0 of 1 scenarios" in page

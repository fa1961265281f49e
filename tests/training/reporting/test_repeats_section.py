"""The section of the report on several runs: spread of the metrics, and labels that are likely mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyhead_training.reporting.report import render_report
from polyhead_training.reporting.results import read_results

SUMMARY = {"mean": 0.75, "sd": 0.05, "min": 0.7, "max": 0.8, "values": [0.7, 0.8]}
SUSPECT = {
    "path": "suspects.jsonl",
    "line": 7,
    "text": "<script>alert(1)</script>",
    "label": "billing",
    "predicted": "delivery",
    "label_probability": 0.02,
    "predicted_probability": 0.97,
}


def report(run: Path, repeats: dict[str, Any], noise: dict[str, Any] | None = None) -> str:
    spread = {"validation": {"topic": {"accuracy": SUMMARY}}, "similarity": {"spearman_after": SUMMARY}}
    (run / "repeats.json").write_text(json.dumps({**repeats, "spread": spread, "identity": {}}))
    if noise is not None:
        (run / "label_noise.json").write_text(json.dumps(noise))
    return render_report(read_results(run))


def test_single_run_has_no_section(finished_run: Path) -> None:
    page = render_report(read_results(finished_run))
    assert "<h2>Seeds</h2>" not in page
    assert "<h2>Cross-validation</h2>" not in page


def test_seeds_show_mean_spread_and_each_value(finished_run: Path) -> None:
    page = report(finished_run, {"seeds": [4, 5], "kept": 5})
    assert "2 runs with the seeds 4, 5" in page
    assert "This report is that of seed 5" in page
    assert "0.7500 ± 0.0500" in page
    assert "0.700, 0.800" in page
    assert "embedding, similarity" in page


def test_likely_mistakes_are_listed_with_their_place_and_escaped(finished_run: Path) -> None:
    noise = {"topic": {"rows": 300, "found": 150, "suspects": [SUSPECT] * 150}}
    page = report(finished_run, {"folds": 2}, noise)
    assert "<h2>Cross-validation</h2>" in page
    assert "150 of 300 rows" in page
    assert page.count("suspects.jsonl:7") == 100
    assert "label_noise.json lists the other 50" in page
    assert "<script>alert" not in page
    assert "97.0\N{NO-BREAK SPACE}%" in page

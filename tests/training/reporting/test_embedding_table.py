from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.evaluation.encodings import forms
from polyhead_training.evaluation.retrieval import Retrieval, RetrievalResult, RetrievalScores
from polyhead_training.reporting.embedding_table import embedding_rows, embedding_table
from polyhead_training.reporting.model_card import render_card
from polyhead_training.reporting.report import render_report
from polyhead_training.reporting.results import Results, read_results

SCORES = RetrievalScores(0.5, 0.4, 0.6, 0.7), RetrievalScores(0.5125, 0.4, 0.6, 0.7)


@pytest.fixture
def results(finished_run: Path) -> Results:
    """A run with similarity pairs and a retrieval task."""
    path = finished_run / "evaluation.json"
    content: dict[str, Any] = json.loads(path.read_bytes())
    task = Retrieval(200, 5183, [RetrievalResult(form, *SCORES) for form in forms(32, (16,))])
    path.write_text(json.dumps({**content, "retrieval": {"help": task.to_json()}}))
    return read_results(finished_run)


def test_rows_have_every_form_and_every_metric_of_the_whole_embedding(results: Results) -> None:
    rows = embedding_rows(results.similarity, results.retrieval)
    expected = [[str(size), encoding] for size in (32, 16) for encoding in ("float32", "int8", "binary")]
    assert [row[1:3] for row in rows if row[0] == "similarity"] == expected
    found = [row for row in rows if row[0] == "help"]
    assert [row[1:3] for row in found if row[3] == "nDCG@10"] == expected
    assert [row[3:] for row in found if row[1:3] == ["32", "float32"]] == [
        ["nDCG@10", "0.5000", "0.5125"],
        ["MAP", "0.4000", "0.4000"],
        ["recall@10", "0.6000", "0.6000"],
        ["recall@100", "0.7000", "0.7000"],
    ]


def test_table_is_empty_without_evaluations() -> None:
    assert embedding_table({"test": {}}) == ""


def test_retrieval_is_no_split(results: Results) -> None:
    assert set(results.splits) == {"validation", "test"}


def test_report_and_card_show_the_table_and_the_sources(results: Results) -> None:
    html, card = render_report(results), render_card(results)
    assert "Quality by dimensions and encoding" in html
    assert "200 queries, 5,183 documents" in html
    assert "Texts that teach the embedding" in html
    assert "| help | 16 | binary | nDCG@10 | 0.5000 | 0.5125 |" in card
    assert "Retrieval `help`: 200 queries, 5,183 documents" in card
    assert "| `pairs` | scored pairs | cosent | 2,000 |" in card


def test_run_without_heads_has_a_report_and_a_card(results: Results) -> None:
    results.run["heads"] = []
    results.splits.clear()
    results.splits["validation"] = {}
    assert "<h2>Sentence embedding</h2>" in render_report(results)
    card = render_card(results)
    assert "## Heads" not in card
    assert "0.5125" in card

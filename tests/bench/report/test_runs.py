"""Tables of repeated runs, and the sections that show them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.report.page import Renderer
from bench.report.runs import runs_table, with_value

RUNS = [
    {"system": "b", "seed": 0, "accuracy": 0.5, "seconds": 20.2, "scores": {"mae": None}},
    {"system": "a", "seed": 0, "accuracy": None, "seconds": 1.0, "scores": {"mae": 2.0}},
    {"system": "b", "seed": 1, "accuracy": 0.7, "seconds": 30.4},
]
COLUMNS = {"accuracy": "accuracy", "MAE": ["scores", "mae"], "seconds": "seconds", "none": "missing"}


def test_table_has_mean_and_deviation_and_no_empty_columns() -> None:
    assert runs_table(RUNS, {"system": "system"}, COLUMNS, digits=1, scale=10).splitlines() == [
        "| system | runs | accuracy | MAE | seconds |",
        "| --- | --: | --: | --: | --: |",
        "| b | 2 | 6.0 ± 1.4 |  | 25 ± 7 |",
        "| a | 1 |  | 20.0 | 1.0 |",
    ]


def test_group_without_figures_is_left_out() -> None:
    assert "| a |" not in runs_table(RUNS, {"system": "system"}, {"accuracy": "accuracy"})


def test_runs_are_chosen_in_the_order_of_the_values() -> None:
    assert [run["seconds"] for run in with_value(RUNS, "system", "a", "c", "b")] == [1.0, 20.2, 30.4]


FORMS = {f"{count} {encoding}": 0.8 for count in (384, 64) for encoding in ("float32", "int8")}
SCORES = {"spearman": {"stsb_dev": FORMS}, "ndcg_at_10": {"scifact": FORMS}}
VARIANT = {
    "passed": True,
    "megabytes": 0.3,
    "server_difference": 1e-7,
    "gate": {
        "difference.sentence_embedding": 1e-6,
        "cosine_distance.mean": 1e-3,
        "cosine_distance.worst": 1e-2,
        "label_disagreement": 0.01,
        "batch_invariance": 0.0,
    },
}
# A run of each program whose section this is.
SECTIONS: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "embedding_quality": (
        "### Embedding and heads in one run",
        [
            {"system": "before", "seed": 0, "seconds": 0, **SCORES},
            {"system": "joint", "seed": 0, "seconds": 9, "accuracy": {"topic": 0.9, "sentiment": None}, **SCORES},
            {"system": "labels", "seed": 0, "seconds": 9, "accuracy": {"topic": 0.91}},
        ],
        "| joint | 1 | 90.00 | 80.00 | 80.00 | 9.0 |",
    ),
    "model_quality": (
        "## Model quality",
        [{"set": "demo", "model": "both heads", "seed": 0, "heads": {"topic": {"accuracy": 0.9}}, "similarity": None}],
        "| demo | both heads | 1 | 0.900 |",
    ),
    "few_shot": (
        "### Few labels",
        [{"set": "trec", "rows": 8, "draw": 0, "method": "SetFit", "accuracy": 0.7, "seconds": 12.0}],
        "| 8 | SetFit | 1 | 70.0 | 12 |",
    ),
    "heads": (
        "### Multi-label, ordinal and regression heads",
        [{"set": "finscore", "system": "fine-tuned", "seed": 0, "seconds": 3.0, "scores": {"mae": 0.2, "r2": 0.5}}],
        "| fine-tuned | 1 | 0.200 | 0.500 | 3.0 |",
    ),
    "domains": (
        "### Domains and long documents",
        [
            {"set": "imdb", "system": "SVM", "seed": 0, "seconds": 0, "scores": {"accuracy": 0.8, "macro_f1": 0.8}},
            {"set": "csabstruct", "system": "SVM", "seed": 0, "seconds": 0, "scores": {"accuracy": 0.5}},
        ],
        "| csabstruct | SVM | 1 | 0.500 |  | 0.0 |",
    ),
    "optimization": (
        "### Optimization methods",
        [{"idea": "ema", "seed": 0, "accuracy": 0.9, "training_seconds": 100.0}],
        "| ema | 1 | 90.00 | 100 |",
    ),
    "selective_accuracy": (
        "### Promised accuracy",
        [
            {
                "set": "trec",
                "seed": 0,
                "promised": 0.95,
                "met": True,
                "all_fp32": 0.8,
                "all_int8": 0.79,
                **{
                    key: {"coverage": 0.6, "accuracy": 0.96, "kept": True, "refuted": False} for key in ("fp32", "int8")
                },
            }
        ],
        "| trec | 95 | 1 | 1 | 1 | 0 | 60.0 | 96.0 | 79.0 |",
    ),
    "resume_losses": (
        "### Resumption by loss",
        [{"case": "CoSENT", "steps": 60, "kills": 3, "bit_equal": 3}],
        "| CoSENT | 60 | 3 | 3 |",
    ),
    "families": (
        "## Backbone families",
        [{"checkpoint": "bert", "layers": 2, "variants": {"fp32": VARIANT, "int8": {"passed": False}}}],
        "| bert | 2 | fp32 | 0.3 | 1.0e-6 | 1.0e-3 | 1.0e-2 | 1.0 | 0.0 | 1.0e-7 |",
    ),
}
SOURCE = {"date": "2026-01-01", "command": "python -m bench.training.heads DATA", "cores": 2, "cpu": ["AVX2"]}


@pytest.mark.parametrize("name", SECTIONS)
def test_section_shows_its_runs(name: str) -> None:
    heading, runs, row = SECTIONS[name]
    page = Renderer({name: {**SOURCE, "runs": runs}}).page("benchmarks.md.jinja")
    assert heading in page
    assert row in page
    assert sum(page.count(f"\n{heading}") for heading in ("###", "## Backbone", "## Model")) == 1


def test_section_states_the_settings_of_its_runs() -> None:
    _, runs, _ = SECTIONS["few_shot"]
    settings = {"test_rows": 1000, "overrides": ["training.mixed_precision=bf16"], "threads": 2}
    page = Renderer({"few_shot": {**SOURCE, "settings": settings, "runs": runs}}).page("benchmarks.md.jinja")
    assert "; at most 1,000 test rows, training.mixed_precision=bf16." in " ".join(page.split())

"""Models of one head keep the rest of their configuration, and runs are summed up by set, model and head."""

from __future__ import annotations

import pytest
from polyhead_training.config_file import read_config

from bench.training import model_quality
from tests.support.demo import ROOT

MODELS = [(name, title) for name, models in model_quality.SETS.items() for title in models]


@pytest.mark.parametrize(("name", "title"), MODELS)
def test_models_differ_in_their_heads_alone(name: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("POLYHEAD_DATA", "data")
    monkeypatch.setenv("POLYHEAD_SPLIT", "split")
    model = model_quality.SETS[name][title]
    whole = read_config(model.config).model_dump()
    changed = read_config(model.config, model_quality.kept_head(model)).model_dump()
    kept = tuple(head for head in whole["model"].pop("heads") if model.head in {None, head["name"]})
    assert tuple(changed["model"].pop("heads")) == kept
    assert changed == whole


def test_figures_of_an_evaluation_and_their_table() -> None:
    scores = {"rows": 10, "accuracy": 0.9, "macro_f1": 0.8, "majority_baseline": 0.5, "ece": 0.01, "brier": 0.1}
    evaluation = {
        "test": {"topic": {**scores, "uncalibrated": {"ece": 0.03, "nll": 0.4}}},
        "similarity": {"rows": 5, "spearman_before": 0.7, "spearman_after": 0.8},
    }
    figures = model_quality.figures(evaluation)
    assert figures["heads"]["topic"]["uncalibrated_ece"] == 0.03
    assert figures["similarity"] == {"before": 0.7, "after": 0.8}
    assert model_quality.figures({"test": {}})["similarity"] is None
    other = {"heads": {"topic": {**figures["heads"]["topic"], "accuracy": 0.8}}}
    runs = [{"set": "demo", "model": "both heads", **one} for one in (figures, other)]
    lines = model_quality.table(runs).splitlines()
    assert lines[-1].split() == ["demo", "both", "heads", "topic", "10", "0.850", "±", "0.071", "0.800", "±", "0.000"]

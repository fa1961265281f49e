"""Models of one head keep the rest of their configuration, and runs are summed up by set, model and head."""

from __future__ import annotations

from typing import Any

import pytest
from polyhead_training.config_file import read_config

from bench.training import model_quality
from bench.training.model_quality import BOTH, SETS, Variant
from tests.support.demo import ROOT

ALONE = [
    pytest.param(models[BOTH], model, title.partition(" alone")[0], id=f"{name} {title}")
    for name, models in SETS.items()
    for title, model in models.items()
    if title.endswith("alone")
]


@pytest.mark.parametrize(("both", "alone", "head"), ALONE)
def test_model_of_one_head_differs_in_heads_and_data_alone(
    both: Variant, alone: Variant, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("POLYHEAD_DATA", "data")
    monkeypatch.setenv("POLYHEAD_SPLIT", "split")
    whole, changed = (settings(model) for model in (both, alone))
    (kept,) = changed["model"].pop("heads")
    assert [kept] == [one for one in whole["model"].pop("heads") if one["name"] == head]
    if both.config != alone.config:
        for files in (whole, changed):
            files.pop("name")
            for name in ("train", "validation", "test"):
                files["data"].pop(name)
    assert changed == whole


def settings(model: Variant) -> dict[str, Any]:
    """Returns the configuration with which a model is trained."""
    return read_config(model.config, model_quality.kept_head(model)).model_dump()


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

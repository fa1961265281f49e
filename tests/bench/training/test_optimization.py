"""The table of ideas is complete, honest about its spread, and continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from polyhead_training.config_file import read_config

from bench.training import optimization
from tests.support.demo import ROOT

RUNS = [
    {"idea": "recipe", "seed": 0, "accuracy": 0.89},
    {"idea": "recipe", "seed": 1, "accuracy": 0.91},
    {"idea": "ema", "seed": 0, "accuracy": 0.905},
]


def test_table_has_mean_spread_and_gain() -> None:
    lines = optimization.table(RUNS).splitlines()[2:]
    assert lines == [
        "| recipe | 2 | 0.9000 [0.8900, 0.9100] |  |",
        "| ema | 1 | 0.9050 [0.9050, 0.9050] | +0.5 |",
    ]
    assert optimization.table(RUNS[2:]).splitlines()[2:] == ["| ema | 1 | 0.9050 [0.9050, 0.9050] |  |"]


def test_ideas_with_a_teacher_require_one(tmp_path: Path) -> None:
    assert "teacher" not in optimization.select(None, None)
    assert optimization.select(["teacher"], tmp_path) == {"teacher": [f"training.teacher={tmp_path}"]}
    with pytest.raises(SystemExit, match="requires --teacher"):
        optimization.select(["teacher"], None)


@pytest.mark.parametrize("idea", optimization.IDEAS)
def test_idea_is_a_valid_configuration(idea: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_DATA", "data")
    recipe = read_config(ROOT / optimization.CONFIG)
    changed = read_config(ROOT / optimization.CONFIG, optimization.IDEAS[idea])
    assert (changed.model_dump() == recipe.model_dump()) == (idea == "recipe")


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert optimization.read(path, []) == []
    path.write_text(json.dumps({"overrides": [], "runs": RUNS}))
    assert optimization.read(path, []) == RUNS
    with pytest.raises(SystemExit, match="use the same, or another --output"):
        optimization.read(path, ["training.batch_size=32"])


def test_run_returns_its_figures_and_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> None:
        commands.append([str(part) for part in command])
        scores = {"rows": 872, "accuracy": 0.9, "macro_f1": 0.9, "nll": 0.3, "ece": 0.1}
        (tmp_path / "run").mkdir()
        (tmp_path / "run/evaluation.json").write_text(json.dumps({"validation": {"sentiment": scores}}))
        lines = [{"seconds": 5.0}, {"seconds": 9.0, "validation": {"sentiment": {"accuracy": 0.8}}}]
        (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr("bench.training.optimization.subprocess.run", run)
    found = optimization.train(["training.average=ema"], 3, tmp_path / "run")
    assert found["accuracy"] == 0.9
    assert (found["accuracy_by_epoch"], found["training_seconds"]) == ([0.8], 9.0)
    assert not (tmp_path / "run").exists()
    assert "--resume" in commands[0]
    assert commands[0][-4:] == ["--set", "training.average=ema", "--set", "training.seed=3"]

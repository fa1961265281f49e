"""The command ``polyhead-train sweep``, on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.storages.journal import JournalFileBackend, JournalStorage
from polyhead.commands import train as train_command
from polyhead_training.cli import main
from polyhead_training.config_file import read_config
from polyhead_training.errors import DivergenceError
from polyhead_training.runs.run_directory import EVALUATION_NAME
from polyhead_training.sweep import search

from tests.support.tiny_training import ALL_CHECKPOINT_STATE, Killed, run_files, subprocess_environment

RATE = "training.stages.1.learning_rate"
FLAGS = ("--range", f"{RATE}=1e-4..1e-2:log", "--choice", "training.average=none,ema")
SMALL = ("--trials", "5", "--rungs", "2", "--reduction", "2")

Calls = list[tuple[str, float, int]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replaces training: the closer a run's rate is to 1e-3, the higher its score. Returns run, rate and rows."""
    calls: Calls = []

    def train(config: Any, destination: Path, *, data: Any, **_: Any) -> None:
        rate = config.training.stages[1].learning_rate
        calls.append((destination.name, rate, len(data.train)))
        score = 1.0 - abs(rate - 1e-3)
        destination.mkdir()
        content = {"validation": {"topic": {"macro_f1": score}, "sentiment": {"macro_f1": None}}}
        (destination / EVALUATION_NAME).write_text(json.dumps(content))

    monkeypatch.setattr(search, "train", train)
    return calls


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the default folder of a sweep out of the project's folder."""
    monkeypatch.chdir(tmp_path)


def sweep(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)], prog_name="polyhead-train")


def test_best_trials_train_on_more_rows_and_the_best_configuration_is_written(
    config_file: Path, tmp_path: Path, trained: Calls
) -> None:
    result = sweep(config_file, *FLAGS, *SMALL)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'config.best.toml'}\n"), result.stderr
    first, second = trained[:5], trained[5:]
    assert [call[0] for call in first] == [f"{trial}-0" for trial in range(5)]
    assert {call[2] for call in first} == {9}
    assert {call[2] for call in second} == {18}
    assert first[0][1] == 0.001  # the configuration's own
    closest = sorted(first, key=lambda call: abs(call[1] - 1e-3))[:3]
    assert [call[1] for call in second] == [call[1] for call in closest]
    best = read_config(tmp_path / "config.best.toml")
    assert best.training.stages[1].learning_rate == 0.001
    assert best.resolve("data.train", best.data.train[0]).exists()
    assert sorted(path.name for path in (tmp_path / "runs/tiny-sweep").iterdir()) == ["best", "study.log"]
    assert "score at 50.0%" in result.stderr
    assert "best of 5 trials of polyhead-train sweep config.toml" in (tmp_path / "config.best.toml").read_text()


def test_best_configuration_sets_the_values_of_the_trial_and_of_set(config_file: Path, trained: Calls) -> None:
    worst = f"{RATE}=0.5"
    assert sweep(config_file, *FLAGS, *SMALL, "--set", worst, "--set", "training.seed=7").exit_code == 0
    values = tomllib.loads(config_file.with_suffix(".best.toml").read_text())
    assert values["training"]["stages"][1]["learning_rate"] == trained[-3][1]
    assert values["training"]["average"] in ("none", "ema")
    assert values["training"]["seed"] == 7
    assert values["data"] == tomllib.loads(config_file.read_text())["data"]


def test_killed_sweep_continues_and_has_the_same_result(
    config_file: Path, tmp_path: Path, trained: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(config_file, *FLAGS, *SMALL, "--output-dir", "whole").exit_code == 0
    expected = (tmp_path / "config.best.toml").read_text()
    complete = list(trained)
    trained.clear()
    train = vars(search)["train"]

    def killed(*arguments: Any, **options: Any) -> None:
        if len(trained) == 3:
            raise Killed
        train(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(search, "train", killed)
        with pytest.raises(Killed):
            sweep(config_file, *FLAGS, *SMALL, "--output-dir", "killed")
    (tmp_path / "config.best.toml").unlink()
    assert "continue it with --resume" in sweep(config_file, *FLAGS, *SMALL, "--output-dir", "killed").stderr
    assert sweep(config_file, *FLAGS, *SMALL, "--output-dir", "killed", "--resume").exit_code == 0
    assert trained == complete
    assert (tmp_path / "config.best.toml").read_text() == expected
    # A complete sweep trains nothing again.
    assert sweep(config_file, *FLAGS, *SMALL, "--output-dir", "killed", "--resume").exit_code == 0
    assert trained == complete


def test_sweep_does_not_continue_on_other_rows(config_file: Path, trained: Calls) -> None:
    assert sweep(config_file, *FLAGS, *SMALL).exit_code == 0
    rows = config_file.with_name("train.jsonl")
    rows.write_text(rows.read_text().replace('"sentiment": 1', '"sentiment": 0', 1))
    before = list(trained)
    result = sweep(config_file, *FLAGS, *SMALL, "--resume")
    assert (result.exit_code, trained) == (2, before)
    assert "was started with rows_sha256 = " in result.stderr


def test_diverged_trial_is_left_behind(config_file: Path, trained: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    train = vars(search)["train"]

    def diverge(config: Any, destination: Path, **options: Any) -> None:
        if destination.name == "0-0":
            raise DivergenceError("second", 3, [])
        train(config, destination, **options)

    monkeypatch.setattr(search, "train", diverge)
    result = sweep(config_file, *FLAGS, *SMALL)
    assert result.exit_code == 0
    assert "trial 0 diverged in stage 'second', step 3" in result.stderr
    assert not any(name.startswith("0-") for name, _, _ in trained)


def test_sweep_without_a_trial_that_converges_fails(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergenceError("second", 3, [])

    monkeypatch.setattr(search, "train", diverge)
    result = sweep(config_file, *FLAGS, *SMALL)
    assert result.exit_code == 2
    assert "every trial diverged: lower the ranges" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one field to vary"),
        (["--range", f"{RATE}=1e-4..1e-2", "--choice", f"{RATE}=1,2"], "has several ranges or choices"),
        (["--range", "training.batch_size=4"], "write KEY=LOW..HIGH"),
        (["--range", "training.batchsize=4..8"], "is not a valid field: did you mean batch_size?"),
        (["--range", "training.batch_size=-8..-4"], "training.batch_size: "),
        (["--range", "training.stages.7.epochs=1..3"], "a list requires the index of an existing element"),
        (["--choice", "training.average=emma,ema"], "training.average: 'emma': "),
        (["--range", f"{RATE}=1e-4..1e-2", "--set", "data.train=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ([*FLAGS, "--set", "data.validation_fraction=0"], "data.validation: has no labelled rows, so that trials"),
    ],
)
def test_mistake_is_reported_before_anything_trains(
    config_file: Path, tmp_path: Path, trained: Calls, arguments: list[str], message: str
) -> None:
    result = sweep(config_file, *arguments)
    assert (result.exit_code, result.stdout, trained) == (2, "", [])
    assert message in result.stderr
    assert not (tmp_path / "config.best.toml").exists()


def test_sweep_in_several_processes_is_refused(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in sweep(config_file, *FLAGS).stderr


def test_sweep_trains_real_runs(config_file: Path, tmp_path: Path) -> None:
    result = sweep(config_file, "--choice", "training.seed=1,2", "--trials", "2", "--rungs", "1", "--output-dir", "out")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out/best/model/model.safetensors").is_file()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "out/study.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert study.trials[1].params == {"training.seed": "1"}
    scores = [one.value or 0.0 for one in study.trials]
    assert len(scores) == 2
    evaluation = json.loads((tmp_path / "out/best" / EVALUATION_NAME).read_text())["validation"]
    assert study.best_value == max(scores) == pytest.approx(sum(head["macro_f1"] for head in evaluation.values()) / 2)


# Kills itself as a step of the second trial begins.
KILLED = """
import os, signal, sys
from polyhead_training import cli
from polyhead_training.sweep import search
train, steps = search.train, 0
def killed(config, destination, *, stop, **options):
    def step():
        global steps
        steps += destination.name == "1-0"
        if steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return stop()
    return train(config, destination, stop=step, **options)
search.train = killed
cli.main(sys.argv[1:])
"""


def test_sweep_that_is_killed_within_a_run_continues_in_it_and_has_the_same_result(
    config_file: Path, tmp_path: Path
) -> None:
    settings = [f"--set={one}" for one in ALL_CHECKPOINT_STATE]
    arguments = [str(config_file), "--range", f"{RATE}=1e-3..1e-2:log", *settings, "--trials", "2", "--rungs", "1"]
    assert sweep(*arguments, "--output-dir", "whole").exit_code == 0
    expected = (tmp_path / "config.best.toml").read_text()
    command = [sys.executable, "-c", KILLED, "sweep", *arguments, "--output-dir", "killed"]
    assert subprocess.run(command, check=False, timeout=120, env=subprocess_environment()).returncode == -signal.SIGKILL
    assert (tmp_path / "killed/trials/1-0.in_progress/last.safetensors").exists()
    (tmp_path / "config.best.toml").unlink()
    resumed = sweep(*arguments, "--output-dir", "killed", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "trial 0 (" not in resumed.stderr
    assert (tmp_path / "config.best.toml").read_text() == expected
    assert run_files(tmp_path / "killed/best") == run_files(tmp_path / "whole/best")
    values = []
    for name in ("whole", "killed"):
        storage = JournalStorage(JournalFileBackend(str(tmp_path / name / "study.log")))
        trials = optuna.load_study(study_name="sweep", storage=storage).trials
        values.append([(one.number, one.state, one.params, one.intermediate_values, one.value) for one in trials])
    assert values[0] == values[1]


def test_missing_optuna_is_reported_with_the_command_that_installs_it(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("optuna", "polyhead_training.sweep.search", "polyhead_training.sweep.study"):
        monkeypatch.setitem(sys.modules, name, None) if name == "optuna" else monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["polyhead-train", "sweep", str(config_file), *FLAGS])
    with pytest.raises(SystemExit) as exit_:
        train_command()
    assert exit_.value.code == 2
    assert "pip install 'polyhead[sweep]': the package optuna is not installed" in capsys.readouterr().err


def test_configuration_named_like_the_command_needs_a_path(config_file: Path, trained: Calls) -> None:
    (config_file.parent / "sweep").write_text(config_file.read_text())
    run: Callable[..., Result] = CliRunner().invoke
    assert run(main, ["sweep"]).exit_code == 2
    assert run(main, ["./sweep", "--dry-run"]).exit_code == 0

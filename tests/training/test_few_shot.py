"""The recipe few-shot, from the configuration to the run directory, on tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.errors import StoppedError
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train

from tests.support.tiny_training import ROWS, ignore, metric_lines, run_files, write_jsonl

CONFIG = """
name = "few"
[model]
backbone = "{backbone}"
max_tokens = 32
[data]
train = "train.jsonl"
test = "test.jsonl"
"""
FEW_SHOT = ("training.recipe=few-shot", "training.batch_size=8")


def reader(folder: Path, backbone: Path) -> Callable[..., Config]:
    """Writes a minimal configuration with its rows; returns a function that reads it with overrides."""
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:6])
    path = folder / "config.toml"
    path.write_text(CONFIG.format(backbone=backbone))
    return lambda *overrides: read_config(path, [*FEW_SHOT, *overrides])


@pytest.fixture
def read(tmp_path: Path, checkpoints: dict[str, Path]) -> Callable[..., Config]:
    """Reads the minimal configuration with overrides."""
    return reader(tmp_path, checkpoints["bert"])


@pytest.fixture(scope="module")
def complete_run(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """An uninterrupted run and its configuration."""
    folder = tmp_path_factory.mktemp("complete")
    config = _shorter(reader(folder, checkpoints["bert"])())
    train(config, folder / "run", report=ignore)
    return config, folder / "run"


def test_recipe_trains_the_embedding_on_all_rows_then_fits_linear_heads(
    read: Callable[..., Config], tmp_path: Path
) -> None:
    messages: list[str] = []
    train(read(), tmp_path / "run", report=messages.append)
    assert "stage contrastive: 30 steps, peak learning rate 0.0001, contrastive loss" in messages
    assert "stage heads: fit of the heads by L-BFGS, penalty 1" in messages
    # The heads are not scored before they were fitted.
    scored = [line["stage"] for line in metric_lines(tmp_path / "run") if "validation" in line]
    assert scored == ["first_heads", *["all"] * 10, "heads"]
    model = load_run(tmp_path / "run").model
    assert [head["activation"] for head in model.config.heads] == ["none", "none"]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["validation"]["topic"]["rows"] == 0
    assert evaluation["test"]["topic"]["rows"] == 6


def test_run_is_a_function_of_the_seed(read: Callable[..., Config], tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(_shorter(read(f"training.seed={seed}")), tmp_path / name, report=ignore)
    assert run_files(tmp_path / "first") == run_files(tmp_path / "again")
    assert (
        run_files(tmp_path / "first")["model/model.safetensors"]
        != run_files(tmp_path / "other")["model/model.safetensors"]
    )


@pytest.mark.parametrize("steps", [1, 4, 6, 10, 12])
def test_stopped_run_resumes_to_the_same_bytes(complete_run: tuple[Config, Path], tmp_path: Path, steps: int) -> None:
    """Stops within each stage of several steps, and at each fit of the heads."""
    config, complete = complete_run
    stop = iter([False] * steps + [True] * 20)
    with pytest.raises(StoppedError):
        train(config, tmp_path / "run", stop=lambda: next(stop), report=ignore)
    train(config, tmp_path / "run", policy="resume", report=ignore)
    assert run_files(tmp_path / "run") == run_files(complete)


def test_label_with_one_row_trains_and_is_named(
    read: Callable[..., Config], tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*rows, {"text": "I moved to another town.", "label": "address"}])
    messages: list[str] = []
    train(_shorter(read()), tmp_path / "run", report=messages.append)
    assert any("address" in message and "warning" in message for message in messages)


def test_single_label_is_an_error_that_names_the_head(
    read: Callable[..., Config], tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{**row, "label": "billing"} for row in rows])
    with pytest.raises(Exception, match="all training rows have the label 'billing'"):
        train(read(), tmp_path / "run", report=ignore)


def _shorter(config: Config) -> Config:
    """Returns the configuration with two passes of each stage that has several, six steps."""
    stages = tuple(one.model_copy(update={"epochs": min(2, one.epochs)}) for one in config.training.stages)
    return config.model_copy(update={"training": config.training.model_copy(update={"stages": stages})})

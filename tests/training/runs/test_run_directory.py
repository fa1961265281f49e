from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.errors import RunError
from polyhead_training.runs.run_directory import load_run, staged_run
from polyhead_training.train import train
from safetensors.torch import load_file, save_file

from tests.support.tiny_training import ignore, write_config


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    train(read_config(write_config(folder, checkpoints["bert"])), folder / "run", max_steps=1, report=ignore)
    return folder / "run"


@pytest.fixture
def run_directory(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run of one step."""
    return Path(shutil.copytree(trained_run, tmp_path / "runs" / "tiny"))


def test_staged_run_appears_atomically(tmp_path: Path) -> None:
    with staged_run(tmp_path / "a" / "run") as folder:
        (folder / "run.json").write_text("{}")
        assert not (tmp_path / "a" / "run").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["run.json"]


def interrupted(folder: Path) -> None:
    """Writes part of a run and is interrupted."""
    (folder / "run.json").write_text("new")
    raise KeyboardInterrupt


def test_failure_leaves_the_old_run_unchanged(tmp_path: Path) -> None:
    old = tmp_path / "run" / "run.json"
    old.parent.mkdir()
    old.write_text("old")
    with pytest.raises(KeyboardInterrupt), staged_run(tmp_path / "run") as folder:
        interrupted(folder)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_complete_run_is_replaced(run_directory: Path) -> None:
    with staged_run(run_directory) as folder:
        (folder / "run.json").touch()
    assert [path.name for path in run_directory.iterdir()] == ["run.json"]


def test_run_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "run.json").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    with staged_run(tmp_path / "link") as folder:
        (folder / "run.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert [path.read_text() for path in (tmp_path / "disk").rglob("*") if path.is_file()] == ["new"]


def test_run_in_the_working_directory_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("old")
    monkeypatch.chdir(tmp_path / "run")
    with staged_run(Path()) as folder:
        (folder / "run.json").write_text("new")
    assert (tmp_path / "run" / "run.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize("name", ["thesis.txt", "model/thesis.txt", "run"])
def test_run_directory_with_unexpected_files_is_not_replaced(run_directory: Path, name: str) -> None:
    (run_directory / name).write_text("ten years of work")
    before = sorted(run_directory.parent.rglob("*"))
    with pytest.raises(RunError, match=f"contains '{name}', which is not part of a run"), staged_run(run_directory):
        pytest.fail("the block must not run")
    assert sorted(run_directory.parent.rglob("*")) == before


def test_destination_created_during_training_is_not_replaced(tmp_path: Path) -> None:
    def occupy(folder: Path) -> None:
        (folder / "run.json").touch()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("ten years of work")

    with pytest.raises(RunError, match="exists and is not a run directory"), staged_run(tmp_path / "run") as folder:
        occupy(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "thesis.txt"]


@pytest.mark.parametrize("content", [None, "precious.txt"])
def test_other_directory_is_not_replaced(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "mine").mkdir()
    if content:
        (tmp_path / "mine" / content).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match="exists and is not a run directory"), staged_run(tmp_path / "mine"):
        pytest.fail("the block must not run")
    assert sorted(tmp_path.rglob("*")) == before


def test_parent_that_is_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"), staged_run(tmp_path / "file" / "run"):
        pytest.fail("the block must not run")


def test_run_directory_contains_the_files_of_the_export(run_directory: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(run_directory).as_posix() for path in run_directory.rglob("*") if path.is_file())
    assert names == [
        "README.md",
        "data.json",
        "evaluation.json",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "report.html",
        "run.json",
        "tokenizer.json",
    ]
    run = load_run(run_directory)
    assert (run.name, run.content["format_version"]) == ("tiny", 1)
    assert run.heads[0]["labels"] == ["account", "app", "billing", "delivery", "product", "support"]
    assert [head["threshold"] for head in run.heads] == [None, 0.5]
    assert all(0.05 <= head["temperature"] <= 20 for head in run.heads)
    assert {"python", "torch", "transformers"} <= set(run.content["built_with"])
    assert Config.model_validate(run.content["config"]).training.batch_size == 4
    assert not run.model.training
    tokenizer = json.loads(run.tokenizer_path.read_text())
    assert (tokenizer["padding"], tokenizer["truncation"]) == (None, None)


def test_model_folder_contains_no_local_path(run_directory: Path, checkpoints: dict[str, Path]) -> None:
    for path in (run_directory / "model").iterdir():
        assert str(checkpoints["bert"].parent).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has format_version None; this release requires 1"),
        ('{"format_version": 2}', "has format_version 2"),
        ('{"format_version": 1, "name": "a"}', "has no field 'heads'"),
    ],
)
def test_invalid_run_json_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)


def test_missing_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_run(tmp_path / "nowhere")


def test_damaged_model_is_rejected(run_directory: Path) -> None:
    weights = run_directory / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="cannot be loaded"):
        load_run(run_directory)


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_weights_of_another_model_are_rejected(run_directory: Path, fault: str) -> None:
    path, name = run_directory / "model" / "model.safetensors", "heads.topic.layers.4.bias"
    weights = load_file(path)
    if fault == "missing":
        del weights[name]
    else:
        weights[name := "heads.other.bias"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(RunError, match=rf"cannot be loaded \(.*{name} is {fault}\); train again"):
        load_run(run_directory)


def test_missing_tokenizer_is_rejected(run_directory: Path) -> None:
    (run_directory / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"tokenizer\.json: is missing"):
        load_run(run_directory)

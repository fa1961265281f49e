"""A resumed run produces the same bytes as an uninterrupted run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.errors import ResumeError, StoppedError, StorageError
from polyhead_training.runs import checkpoint
from polyhead_training.runs.in_progress import ResumePolicy
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.support.tiny_training import (
    ALL_CHECKPOINT_STATE,
    Killed,
    ignore,
    metric_lines,
    run_files,
    stop_after_first_step,
    subprocess_environment,
    write_config,
)

Configure = Callable[..., Config]


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> tuple[Config, Path]:
    """An uninterrupted run of 15 steps and its configuration."""
    folder = tmp_path_factory.mktemp("complete")
    config = read_config(write_config(folder, checkpoints["bert"]), ALL_CHECKPOINT_STATE)
    train(config, folder / "run", report=ignore)
    return config, folder / "run"


def killed_before_step(step: int) -> Callable[[], bool]:
    """A ``stop`` callback, called before each step, that kills the run before a step, counted from 1."""
    calls = iter(range(1, step + 1))

    def stop() -> bool:
        if next(calls) == step:
            raise Killed
        return False

    return stop


def assert_resumes_to(complete_run: tuple[Config, Path], destination: Path, last_checkpoint: int | None) -> None:
    """Resumes a run and compares it with the complete one."""
    config, complete = complete_run
    messages: list[str] = []
    train(config, destination, policy="resume", report=messages.append)
    resumed = [f"resumed after step {last_checkpoint}"] if last_checkpoint else []
    assert [message for message in messages if message.startswith("resumed")] == resumed
    assert run_files(destination) == run_files(complete)
    assert metric_lines(destination) == metric_lines(complete)


@pytest.mark.parametrize(("step", "last_checkpoint"), [(2, None), (4, 3), (8, 6), (12, 10)])
def test_run_killed_between_steps_resumes_to_the_same_bytes(
    complete_run: tuple[Config, Path], tmp_path: Path, step: int, last_checkpoint: int | None
) -> None:
    with pytest.raises(Killed):
        train(complete_run[0], tmp_path / "run", stop=killed_before_step(step), report=ignore)
    assert_resumes_to(complete_run, tmp_path / "run", last_checkpoint)


@pytest.mark.parametrize(("step", "last_checkpoint"), [(10, 9), (15, 12)])
def test_run_killed_after_logging_an_epoch_resumes_to_the_same_bytes(
    complete_run: tuple[Config, Path], tmp_path: Path, step: int, last_checkpoint: int
) -> None:
    def report(message: str) -> None:
        if f"step {step}," in message:
            raise Killed

    with pytest.raises(Killed):
        train(complete_run[0], tmp_path / "run", report=report)
    assert_resumes_to(complete_run, tmp_path / "run", last_checkpoint)


def test_stopped_run_resumes_to_the_same_bytes(complete_run: tuple[Config, Path], tmp_path: Path) -> None:
    stop = iter([False] * 6 + [True])
    with pytest.raises(StoppedError, match="stopped after step 7"):
        train(complete_run[0], tmp_path / "run", stop=lambda: next(stop), report=ignore)
    assert not (tmp_path / "run").exists()
    assert_resumes_to(complete_run, tmp_path / "run", last_checkpoint=7)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_full_disk_is_reported_and_the_run_resumes_to_the_same_bytes(
    complete_run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saved: list[Path] = []

    def fail(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
        if len(saved) == 3:
            path.write_bytes(b"half a file")
            raise error
        saved.append(path)
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(StorageError, match=r"run\.in_progress: cannot be written: No space left .*--resume"):
            train(complete_run[0], tmp_path / "run", report=ignore)
    assert_resumes_to(complete_run, tmp_path / "run", last_checkpoint=5)


def test_sigterm_saves_a_checkpoint_and_prints_the_resume_command(config_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyhead_training", str(config_file), "--output-dir", str(tmp_path / "run")]
    command += ["--set", "training.stages.1.epochs=2000"]
    with subprocess.Popen(command, env=subprocess_environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "epoch 1, step 10" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert any("SIGTERM: saving a checkpoint after this step" in line for line in lines)
    assert lines[-1].strip().startswith("python -m polyhead_training ")
    assert lines[-1].strip().endswith("--resume")
    assert "training.stages.1.epochs=2000" in lines[-1]
    assert (tmp_path / "run.in_progress" / "last.safetensors").exists()
    assert not (tmp_path / "run").exists()


def test_run_in_progress_is_not_discarded_by_default(configure: Configure, tmp_path: Path) -> None:
    stop_after_first_step(configure(), tmp_path / "run")
    with pytest.raises(ResumeError, match="contains a run in progress: continue it with --resume"):
        train(configure(), tmp_path / "run", report=ignore)
    assert (tmp_path / "run.in_progress" / "last.safetensors").exists()
    train(configure(), tmp_path / "run", policy="restart", max_steps=1, report=ignore)
    assert (tmp_path / "run" / "run.json").exists()


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """Configuration file of a run in progress in the same folder, stopped after its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    path = write_config(folder, checkpoints["bert"])
    stop_after_first_step(read_config(path), folder / "run")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stages.0.learning_rate=0.5", r"was started with config\.training\.stages = .*use the same inputs"),
        ("training.seed=3", r"config\.training\.seed = 0, this start has 3"),
        ("data.train=changed.jsonl", r"config\.data\.train"),
    ],
)
def test_resumed_run_requires_the_same_configuration(stopped_run: Path, override: str, message: str) -> None:
    stopped_run.with_name("changed.jsonl").write_bytes(stopped_run.with_name("train.jsonl").read_bytes())
    with pytest.raises(ResumeError, match=message):
        train(read_config(stopped_run, [override]), stopped_run.with_name("run"), policy="resume", report=ignore)


def test_resumed_run_requires_the_same_rows(configure: Configure, config_file: Path, tmp_path: Path) -> None:
    stop_after_first_step(configure(), tmp_path / "run")
    path = config_file.with_name("train.jsonl")
    path.write_text(path.read_text().replace("Lovely", "Horrid"))
    with pytest.raises(ResumeError, match="data_sha256"):
        train(configure(), tmp_path / "run", policy="resume", report=ignore)


def test_renamed_labels_start_a_new_run(configure: Configure, config_file: Path, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=ignore)
    path = config_file.with_name("train.jsonl")
    # The label keeps its position in the sorted order, so the encoded rows do not change.
    path.write_text(path.read_text().replace('"app"', '"apps"'))
    config_file.with_name("test.jsonl").write_text("")
    assert train(configure("data.test=[]"), tmp_path / "run", max_steps=1, policy="resume", report=ignore)
    assert load_run(tmp_path / "run").heads[0]["labels"][1] == "apps"


def test_missing_metrics_lines_are_an_error(configure: Configure, tmp_path: Path) -> None:
    stages = "training.stages=[{name='one', train=['heads'], epochs=4, learning_rate=0.01}]"
    stop = iter([False] * 12 + [True])
    with pytest.raises(StoppedError):
        train(configure(stages), tmp_path / "run", stop=lambda: next(stop), report=ignore)
    (tmp_path / "run.in_progress" / "metrics.jsonl").write_text("")
    with pytest.raises(ResumeError, match=r"metrics\.jsonl: is shorter than at the last checkpoint"):
        train(configure(stages), tmp_path / "run", policy="resume", report=ignore)


def test_damaged_checkpoint_is_an_error(configure: Configure, tmp_path: Path) -> None:
    stop_after_first_step(configure(), tmp_path / "run")
    path = tmp_path / "run.in_progress" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ResumeError, match=r"last\.safetensors: cannot be read .*--restart"):
        train(configure(), tmp_path / "run", policy="resume", report=ignore)


def test_resuming_a_complete_run_changes_nothing(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=ignore)
    before = run_files(tmp_path / "run")
    messages: list[str] = []
    assert train(configure(), tmp_path / "run", max_steps=1, policy="resume", report=messages.append) is None
    assert messages[-1].endswith("is complete; nothing to resume")
    assert run_files(tmp_path / "run") == before


@pytest.mark.parametrize("policy", ["resume", "restart"])
def test_complete_run_with_other_inputs_is_kept_until_it_is_replaced(
    configure: Configure, tmp_path: Path, policy: ResumePolicy
) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=ignore)
    before, messages = run_files(tmp_path / "run"), list[str]()

    def stop() -> bool:
        expected = "config.training.seed = 0, this start has 5; it is replaced when this run is complete"
        assert any(expected in message for message in messages)
        return True

    config = configure("training.seed=5")
    with pytest.raises(StoppedError):
        train(config, tmp_path / "run", max_steps=2, policy=policy, stop=stop, report=messages.append)
    assert run_files(tmp_path / "run") == before
    assert train(config, tmp_path / "run", max_steps=2, policy="resume", report=ignore)
    assert run_files(tmp_path / "run") != before

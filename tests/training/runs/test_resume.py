"""Runs that are stopped, killed, resumed, spread over processes: what comes out is what would have come out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.errors import ResumeError, StoppedError, StorageError
from polyhead_training.loop.loop import Loop
from polyhead_training.runs import checkpoint, in_progress
from polyhead_training.runs.checkpoint import save_last
from polyhead_training.runs.in_progress import IDENTITY_NAME, ResumePolicy, in_progress_path, in_progress_run
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train
from safetensors import SafetensorError
from safetensors.torch import save_file

Configure = Callable[..., Config]
# All that a checkpoint has to bring back: two optimizers, layers that join later, dropout, learned weights of
# losses, embeddings to be held to.
EVERYTHING = (
    "training.checkpoint_steps=3",
    "training.loss_weighting=uncertainty",
    "training.stages.1={name='second', train=['all'], epochs=2, learning_rate=1e-2, unfreeze_over=0.5}",
)


class Killed(BaseException):
    """As abrupt as a test can be inside a process."""


def silent(line: str) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    """What a run leaves behind that has no time in it."""
    return {name: (folder / name).read_bytes() for name in ("model/model.safetensors", "evaluation.json")}


def curve(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9, 15])
def test_run_that_was_killed_goes_on_to_the_same_bytes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = configure(*EVERYTHING)
    train(config, tmp_path / "whole", report=silent)
    advance = Loop._advance

    def die(self: Loop, *arguments: object, **options: object) -> None:
        advance(self, *arguments, **options)  # type: ignore[arg-type]
        if self.progress.steps == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_advance", die)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", report=silent)
    reported: list[str] = []
    train(config, tmp_path / "run", policy="resume", report=reported.append)
    saved = [n for n in (3, 5, 6, 9, 10, 12, 15) if n < step]
    assert [line for line in reported if line.startswith("resumed")] == [f"resumed after step {n}" for n in saved[-1:]]
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_stop_saves_and_goes_on_to_the_same_bytes(configure: Configure, tmp_path: Path) -> None:
    config = configure(*EVERYTHING)
    train(config, tmp_path / "whole", report=silent)
    asked = iter([False] * 6 + [True])
    with pytest.raises(StoppedError, match="stopped after step 7"):
        train(config, tmp_path / "run", stop=lambda: next(asked), report=silent)
    assert not (tmp_path / "run").exists()
    train(config, tmp_path / "run", policy="resume", report=silent)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def stopped(config: Config, destination: Path) -> None:
    with pytest.raises(StoppedError):
        train(config, destination, stop=lambda: True, report=silent)


def test_unfinished_run_is_not_discarded_unasked(configure: Configure, tmp_path: Path) -> None:
    stopped(configure(), tmp_path / "run")
    with pytest.raises(ResumeError, match="holds a run that is not finished: go on with it with --resume"):
        train(configure(), tmp_path / "run", report=silent)
    assert (tmp_path / "run.in_progress" / "last.safetensors").exists()
    train(configure(), tmp_path / "run", policy="restart", max_steps=1, report=silent)
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stages.0.learning_rate=0.5", r"was started with config\.training\.stages = .*start as before"),
        ("training.seed=3", r"config\.training\.seed = 0, this start has 3"),
    ],
)
def test_resumed_run_has_to_be_the_same(configure: Configure, tmp_path: Path, override: str, message: str) -> None:
    stopped(configure(), tmp_path / "run")
    with pytest.raises(ResumeError, match=message):
        train(configure(override), tmp_path / "run", policy="resume", report=silent)


def test_changed_rows_are_noticed(configure: Configure, config_file: Path, tmp_path: Path) -> None:
    stopped(configure(), tmp_path / "run")
    path = config_file.with_name("train.jsonl")
    path.write_text(path.read_text().replace("Lovely", "Horrid"))
    with pytest.raises(ResumeError, match="data_sha256"):
        train(configure(), tmp_path / "run", policy="resume", report=silent)


def test_renamed_labels_are_noticed(configure: Configure, config_file: Path, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=silent)
    path = config_file.with_name("train.jsonl")
    # The same place in the order of the labels: the rows as numbers do not change.
    path.write_text(path.read_text().replace('"app"', '"apps"'))
    config_file.with_name("test.jsonl").write_text("")
    assert train(configure("data.test=[]"), tmp_path / "run", max_steps=1, policy="resume", report=silent)
    assert load_run(tmp_path / "run").heads[0]["labels"][1] == "apps"


def test_run_that_died_while_it_was_tidied_up_is_complete(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path) -> None:
        if (folder / "last.safetensors").exists():
            raise Killed
        clear(folder)

    clear = in_progress._clear
    with monkeypatch.context() as patch:
        patch.setattr("polyhead_training.runs.in_progress._clear", die)
        with pytest.raises(Killed):
            train(configure("training.trackers=['tensorboard']"), tmp_path / "run", max_steps=1, report=silent)
    assert (tmp_path / "run.in_progress").exists()
    config = configure("training.trackers=['tensorboard']")
    assert train(config, tmp_path / "run", max_steps=1, policy="resume", report=silent) is None
    assert train(config, tmp_path / "run", max_steps=2, policy="restart", report=silent)


def test_metrics_that_lost_lines_are_named(configure: Configure, tmp_path: Path) -> None:
    stages = "training.stages=[{name='one', train=['heads'], epochs=4, learning_rate=0.01}]"
    asked = iter([False] * 12 + [True])
    with pytest.raises(StoppedError):
        train(configure(stages), tmp_path / "run", stop=lambda: next(asked), report=silent)
    (tmp_path / "run.in_progress" / "metrics.jsonl").write_text("")
    with pytest.raises(ResumeError, match=r"metrics\.jsonl: is shorter than at the last checkpoint"):
        train(configure(stages), tmp_path / "run", policy="resume", report=silent)


def test_damaged_checkpoint_is_named(configure: Configure, tmp_path: Path) -> None:
    stopped(configure(), tmp_path / "run")
    path = tmp_path / "run.in_progress" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ResumeError, match=r"last\.safetensors: cannot be read .*--restart"):
        train(configure(), tmp_path / "run", policy="resume", report=silent)


def test_resume_of_a_complete_run_changes_nothing(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=silent)
    before = files(tmp_path / "run")
    reported: list[str] = []
    assert train(configure(), tmp_path / "run", max_steps=1, policy="resume", report=reported.append) is None
    assert reported[-1].endswith("is complete: there is nothing to resume")
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("policy", ["resume", "restart"])
def test_complete_run_of_another_start_is_kept_until_it_is_replaced(
    configure: Configure, tmp_path: Path, policy: ResumePolicy
) -> None:
    train(configure(), tmp_path / "run", max_steps=1, report=silent)
    before, reported = files(tmp_path / "run"), list[str]()

    def stop() -> bool:
        assert any("config.training.seed = 0, this start has 5: it is replaced once this" in line for line in reported)
        return True

    with pytest.raises(StoppedError):
        train(
            configure("training.seed=5"),
            tmp_path / "run",
            max_steps=2,
            policy=policy,
            stop=stop,
            report=reported.append,
        )
    assert files(tmp_path / "run") == before
    assert train(configure("training.seed=5"), tmp_path / "run", max_steps=2, policy="resume", report=silent)
    assert files(tmp_path / "run") != before


def test_last_weights_are_kept_where_they_are_asked_for(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1] * 2)
    monkeypatch.setattr(
        "polyhead_training.train.quick_score", lambda *_: {"accuracy": None, "macro_f1": next(scores), "nll": None}
    )
    overrides = ["training.stages=[{name='all', train=['all'], epochs=3, learning_rate=0.01}]", "data.test=[]"]
    one_head = "model.heads=[{name='topic', kind='softmax', field='label'}]"
    for select in ("best", "last"):
        train(configure(*overrides, one_head, f"training.select={select}"), tmp_path / select, report=silent)
    kept = {select: (tmp_path / select / "model" / "model.safetensors").read_bytes() for select in ("best", "last")}
    assert kept["best"] != kept["last"]


def test_two_processes_cannot_train_into_one_directory(tmp_path: Path) -> None:
    with in_progress_run(tmp_path / "run", {}, "refuse"):
        second = in_progress_run(tmp_path / "run", {}, "restart")
        with pytest.raises(ResumeError, match="another process is training into it"):
            second.__enter__()
        assert (tmp_path / "run.in_progress" / IDENTITY_NAME).exists()


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = in_progress_path(tmp_path / "run")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ResumeError, match="is no unfinished run; it was left untouched"):
        in_progress_run(tmp_path / "run", {}, "restart").__enter__()
    assert (folder / "thesis.txt").read_text() == "years of work"


def without_dropout(checkpoints: dict[str, Path], folder: Path) -> str:
    """The tiny BERT without dropout, which no two processes could draw alike, and heads without."""
    folder.mkdir()
    for path in checkpoints["bert"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def quiet_heads(config_file: Path, checkpoints: dict[str, Path], tmp_path: Path) -> list[str]:
    """Overrides that leave nothing to chance."""
    topic = "{name='topic', kind='softmax', field='label', dropout=0.0, class_weights='balanced'}"
    sentiment = "{name='sentiment', kind='sigmoid', labels=['no', 'yes'], dropout=0.0}"
    return [
        f"model.backbone={without_dropout(checkpoints, tmp_path / 'plain')}",
        f"model.heads=[{topic}, {sentiment}]",
        "training.stages.1.epochs=4",
        "training.stages.1.train=['all']",
    ]


def losses(folder: Path) -> list[float]:
    return [float(str(line["loss"])) for line in curve(folder) if "loss" in line]


def test_accumulated_passes_are_one_large_one(configure: Configure, quiet_heads: list[str], tmp_path: Path) -> None:
    train(configure(*quiet_heads, "training.batch_size=2"), tmp_path / "small", report=silent)
    for name, size, passes in (("whole", 4, 1), ("parts", 1, 4)):
        overrides = [f"training.batch_size={size}", f"training.gradient_accumulation={passes}"]
        train(configure(*quiet_heads, *overrides), tmp_path / name, report=silent)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert losses(tmp_path / "parts") != pytest.approx(losses(tmp_path / "small")[:2], abs=1e-5)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_two_processes_are_one_with_twice_the_batch(
    configure: Configure, config_file: Path, quiet_heads: list[str], tmp_path: Path
) -> None:
    train(configure(*quiet_heads, "training.batch_size=4"), tmp_path / "one", report=silent)
    settings = [part for override in [*quiet_heads, "training.batch_size=2"] for part in ("--set", override)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "polyhead_training", str(config_file), "--output-dir", str(tmp_path / "two"), *settings]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'two'}\n"
    assert len(losses(tmp_path / "two")) == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    written = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert written[0]["test"]["topic"]["nll"] == pytest.approx(written[1]["test"]["topic"]["nll"], abs=1e-4)


def test_sigterm_saves_prints_the_command_and_goes_on(config_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyhead_training", str(config_file), "--output-dir", str(tmp_path / "run")]
    command += ["--set", "training.stages.1.epochs=2000"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "epoch 1, step 10" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert any("SIGTERM: saving after this step" in line for line in lines)
    assert lines[-1].strip().startswith("python -m polyhead_training ")
    assert lines[-1].strip().endswith("--resume")
    assert "training.stages.1.epochs=2000" in lines[-1]
    assert (tmp_path / "run.in_progress" / "last.safetensors").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_full_disk_is_named_and_training_goes_on_when_there_is_room(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = configure(*EVERYTHING)
    train(config, tmp_path / "whole", report=silent)
    saved: list[Path] = []

    def fail(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
        if len(saved) == 3:
            path.write_bytes(b"half a file")
            raise error
        saved.append(path)
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail)
        with pytest.raises(
            StorageError, match=r"run\.in_progress: cannot be written: No space left .*Make room .*--resume"
        ):
            train(config, tmp_path / "run", report=silent)
    reported: list[str] = []
    train(config, tmp_path / "run", policy="resume", report=reported.append)
    assert any(line.startswith("resumed after step") for line in reported)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_checkpoint_is_replaced_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator
    from polyhead_training.runs.checkpoint import Progress, load_last

    module, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    save_last(tmp_path, Progress(steps=1), module, None, accelerator)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyhead_training.runs.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_last(tmp_path, Progress(steps=2), module, None, accelerator)
    found = load_last(tmp_path, module)
    assert found is not None
    assert found.steps == 1

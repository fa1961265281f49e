from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import ConfigError, ResumeError
from polyhead_training.loop import teacher as teacher_module
from polyhead_training.loop.teacher import TeacherLogits, open_teacher
from polyhead_training.model import PolyheadModel
from polyhead_training.runs.run_directory import load_run
from polyhead_training.tokenization import load_tokenizer
from polyhead_training.train import dry_run, train

from tests.support.tiny_training import Killed, ignore, losses, run_files, write_config

Configure = Callable[..., Config]

SWAPPED = "model.heads.1.labels=['1', '0']"
HEADS = (
    "model.heads=[{name='topic', kind='softmax', field='label'}, {name='sentiment', kind='sigmoid', labels=['0', '1']}]"
)
FEW_STEPS = "training.stages=[{name='all', train=['all'], epochs=2, learning_rate=0.01}]"


@pytest.fixture(scope="module")
def trained_teacher(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on another family of backbones, with another tokenizer; read-only."""
    folder = tmp_path_factory.mktemp("teacher")
    config = read_config(write_config(folder, checkpoints["roberta"]), [HEADS])
    train(config, folder / "run", max_steps=3, report=ignore)
    return folder / "run"


@pytest.fixture
def teacher(trained_teacher: Path, tmp_path: Path) -> Path:
    """A copy of that run, which a test may change."""
    return Path(shutil.copytree(trained_teacher, tmp_path / "teacher"))


def killed_after(steps: int) -> Callable[[], bool]:
    """A ``stop`` callback that kills the run after some steps; an epoch has five."""
    calls = iter(range(steps + 1))

    def stop() -> bool:
        if next(calls) == steps:
            raise Killed
        return False

    return stop


def edit_heads(run: Path, edit: Callable[[list[dict[str, object]]], None]) -> None:
    """Changes the heads in ``run.json``."""
    content = json.loads((run / "run.json").read_text())
    edit(content["heads"])
    (run / "run.json").write_text(json.dumps(content))


def written_logits(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> TeacherLogits:
    """Returns the logits that a run computes before its first step."""
    found: list[TeacherLogits] = []

    def stop(path: Path, teacher: teacher_module.Teacher) -> None:
        found.append(TeacherLogits(path, teacher))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "TeacherLogits", stop)
        with pytest.raises(Killed):
            train(config, folder, report=ignore)
    return found[0]


def test_logits_are_those_of_the_teacher_on_its_own_tokens(
    configure: Configure, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(HEADS, f"training.teacher={teacher}")
    found = written_logits(config, tmp_path / "run", monkeypatch).batch([2, 0], torch.device("cpu"))
    run = load_run(teacher)
    texts = [row.text for row in read_data(config).train]
    tokenizer = load_tokenizer(run.tokenizer_path)
    for index, row in enumerate((2, 0)):
        ids = torch.tensor([tokenizer.encode(texts[row]).ids[: run.model.config.max_tokens]])
        expected = run.model(ids, torch.ones_like(ids)).logits
        for head in ("topic", "sentiment"):
            torch.testing.assert_close(found[head][index], expected[head][0], rtol=0, atol=1e-5)


def test_teacher_leaves_the_device_when_its_logits_are_computed(
    configure: Configure, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(HEADS, f"training.teacher={teacher}")
    data, accelerator = read_data(config), Accelerator(cpu=True)
    found = open_teacher(config, data.heads)
    assert found is not None
    model, devices = found.run.model, []

    def move(device: object) -> PolyheadModel:
        devices.append(device)
        return model

    monkeypatch.setattr(model, "to", move)
    found.logits(tmp_path, data.train, accelerator)
    assert devices == [accelerator.device, "cpu"]


def test_labels_in_another_order_are_matched_by_name(
    configure: Configure, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = written_logits(configure(HEADS, f"training.teacher={teacher}"), tmp_path / "straight", monkeypatch)
    labels = list(reversed(load_run(teacher).heads[0]["labels"]))
    overrides = [HEADS, SWAPPED, f"model.heads.0.labels={labels}", f"training.teacher={teacher}"]
    other = written_logits(configure(*overrides), tmp_path / "other", monkeypatch)
    ours, theirs = (found.batch([0, 1, 2], torch.device("cpu")) for found in (straight, other))
    torch.testing.assert_close(theirs["topic"], ours["topic"].flip(1))
    torch.testing.assert_close(theirs["sentiment"], -ours["sentiment"])


def test_teacher_with_one_of_the_heads_teaches_that_head(configure: Configure, teacher: Path, tmp_path: Path) -> None:
    edit_heads(teacher, lambda heads: heads[1].update(name="mood"))
    config = configure(HEADS, f"training.teacher={teacher}", FEW_STEPS)
    found = open_teacher(config, read_data(config).heads)
    assert found is not None
    assert list(found.outputs) == ["topic"]
    train(config, tmp_path / "taught", report=ignore)
    train(configure(HEADS, FEW_STEPS), tmp_path / "untaught", report=ignore)
    assert losses(tmp_path / "taught") != losses(tmp_path / "untaught")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda heads: heads[0].update(kind="sigmoid"), r"head 'topic' of .* is of the kind 'sigmoid', not 'softmax'"),
        (lambda heads: heads[0]["labels"].remove("app"), "head 'topic' of .* lacks the label 'app'"),
        (lambda heads: heads[0]["labels"].append("zoo"), "has the label 'zoo', which the training rows do not have"),
        (lambda heads: [head.update(name=f"old_{head['name']}") for head in heads], "none of topic, sentiment"),
    ],
)
def test_teacher_that_does_not_match_is_refused_before_training(
    configure: Configure, teacher: Path, edit: Callable[[list[dict[str, object]]], None], message: str
) -> None:
    edit_heads(teacher, edit)
    config = configure(HEADS, f"training.teacher={teacher}")
    with pytest.raises(ConfigError, match=f"training.teacher: .*{message}"):
        dry_run(config, read_data(config), ignore)


def test_teacher_that_is_not_a_run_is_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure(f"training.teacher={tmp_path}")
    with pytest.raises(ConfigError, match=r"training\.teacher: .*is not a run directory"):
        train(config, tmp_path / "run", report=ignore)


@pytest.mark.parametrize(("average", "killed", "checkpoint"), [("ema", 7, 6), ("swa", 5, 5)])
def test_run_with_everything_resumes_to_the_same_bytes(  # noqa: PLR0917
    configure: Configure,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    average: str,
    killed: int,
    checkpoint: int,
) -> None:
    """Average, R-Drop and teacher: killed within the second stage, and between the two."""
    settings = [f"training.teacher={teacher}", "training.r_drop=1", f"training.average={average}"]
    config = configure(HEADS, "training.checkpoint_steps=2", *settings)
    train(config, tmp_path / "whole", report=ignore)
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", stop=killed_after(killed), report=ignore)
    assert np.load(tmp_path / "killed.in_progress" / teacher_module.NAME).shape == (18, 7)
    messages: list[str] = []
    with monkeypatch.context() as patch:
        # The logits of the teacher are not computed again.
        patch.setattr(teacher_module, "compute_rows", None)
        train(config, tmp_path / "killed", policy="resume", report=messages.append)
    assert f"resumed after step {checkpoint}" in messages
    assert run_files(tmp_path / "killed") == run_files(tmp_path / "whole")


def test_run_does_not_resume_with_another_teacher(configure: Configure, teacher: Path, tmp_path: Path) -> None:
    config = configure(HEADS, f"training.teacher={teacher}")
    with pytest.raises(Killed):
        train(config, tmp_path / "run", stop=killed_after(6), report=ignore)
    train(configure(HEADS), teacher, max_steps=1, policy="restart", report=ignore)
    with pytest.raises(ResumeError, match="teacher_sha256"):
        train(config, tmp_path / "run", policy="resume", report=ignore)

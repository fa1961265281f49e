"""A step does not depend on how its rows are split into micro-batches and processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from polyhead_training.config import Config
from polyhead_training.train import train

from tests.support.tiny_embedding import write_embedding_data
from tests.support.tiny_training import ignore, losses, subprocess_environment

Configure = Callable[..., Config]


@pytest.fixture
def deterministic(checkpoints: dict[str, Path], tmp_path: Path) -> list[str]:
    """Overrides for a run without dropout, which no two processes could draw alike, and with 20 logged steps."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in checkpoints["bert"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(content))
    topic = "{name='topic', kind='softmax', field='label', dropout=0.0, class_weights='balanced'}"
    sentiment = "{name='sentiment', kind='sigmoid', labels=['no', 'yes'], dropout=0.0}"
    return [
        f"model.backbone={folder}",
        f"model.heads=[{topic}, {sentiment}]",
        "training.stages.1.epochs=4",
        "training.stages.1.train=['all']",
    ]


def test_gradient_accumulation_equals_a_larger_batch(
    configure: Configure, deterministic: list[str], tmp_path: Path
) -> None:
    for name, size, accumulation in (("whole", 4, 1), ("parts", 1, 4), ("small", 1, 1)):
        overrides = [f"training.batch_size={size}", f"training.gradient_accumulation={accumulation}"]
        train(configure(*deterministic, *overrides), tmp_path / name, max_steps=20, report=ignore)
    assert len(losses(tmp_path / "whole")) == 2
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    assert losses(tmp_path / "small") != pytest.approx(losses(tmp_path / "whole"), abs=1e-3)


def test_two_processes_equal_one_with_twice_the_batch(
    configure: Configure, config_file: Path, deterministic: list[str], tmp_path: Path
) -> None:
    """With steps that teach the embedding among those of the heads."""
    overrides = [*write_embedding_data(config_file.parent), *deterministic, "training.stages.1.epochs=2"]
    train(configure(*overrides, "training.batch_size=4"), tmp_path / "one", report=ignore)
    settings = [part for override in [*overrides, "training.batch_size=2"] for part in ("--set", override)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "polyhead_training", str(config_file), "--output-dir", str(tmp_path / "two"), *settings]
    result = subprocess.run(
        command, env=subprocess_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'two'}\n"
    assert len(losses(tmp_path / "two")) == 3
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    written = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert written[0]["test"]["topic"]["nll"] == pytest.approx(written[1]["test"]["topic"]["nll"], abs=1e-4)

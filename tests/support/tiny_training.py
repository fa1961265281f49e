"""A small training configuration with its rows, and helpers to compare the runs that it produces."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.config import Config
from polyhead_training.errors import StoppedError
from polyhead_training.train import train

from .tiny_tokenizers import SENTENCES

LABELS = ["delivery", "product", "account", "support", "billing", "app"]
# 24 labelled rows in six classes.
ROWS: list[dict[str, Any]] = [
    {"text": f"{text} {'Really. ' * repeats}", "label": label, "sentiment": number % 2}
    for repeats in range(4)
    for number, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True))
]
# Everything that a checkpoint must restore: two optimizers, layers that are unfrozen later, dropout, learned loss
# weights, target embeddings of distillation.
ALL_CHECKPOINT_STATE = (
    "training.checkpoint_steps=3",
    "training.loss_weighting=uncertainty",
    "training.stages.1={name='second', train=['all'], epochs=2, learning_rate=1e-2, unfreeze_over=0.5}",
)


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    """Writes rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(folder: Path, backbone: Path) -> Path:
    """Writes a configuration of two stages of five steps each, with its training and test rows beside it."""
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:6])
    path = folder / "config.toml"
    path.write_text(
        f"""
        name = "tiny"
        [model]
        backbone = "{backbone}"
        max_tokens = 32
        [data]
        train = "train.jsonl"
        test = ["test.jsonl"]
        validation_fraction = 0.25
        [training]
        batch_size = 4
        [[training.stages]]
        name = "first"
        train = ["heads"]
        learning_rate = 0.01
        [[training.stages]]
        name = "second"
        train = ["pooling", "heads", "layers:1"]
        learning_rate = 0.001
        """,
        encoding="utf-8",
    )
    return path


class Killed(BaseException):
    """Ends a run as abruptly as is possible inside a process."""


def ignore(message: str) -> None:
    """Ignores a message of a run."""


def run_files(folder: Path) -> dict[str, bytes]:
    """Files of a run that must not depend on time."""
    return {name: (folder / name).read_bytes() for name in ("model/model.safetensors", "evaluation.json")}


def metric_lines(folder: Path) -> list[dict[str, object]]:
    """Lines of ``metrics.jsonl`` without the elapsed seconds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def losses(folder: Path) -> list[float]:
    """Logged losses of a run."""
    return [float(str(line["loss"])) for line in metric_lines(folder) if "loss" in line]


def stop_after_first_step(config: Config, destination: Path) -> None:
    """Leaves a run in progress with a checkpoint after its first step."""
    with pytest.raises(StoppedError):
        train(config, destination, stop=lambda: True, report=ignore)


def subprocess_environment() -> dict[str, str]:
    """Environment of a training process: one thread, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

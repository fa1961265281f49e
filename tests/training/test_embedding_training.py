"""Runs whose sentence embedding is a task, beside heads and alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.errors import ConfigError, DivergenceError
from polyhead_training.loop.embedding_task import EmbeddingTask
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train

from tests.support.tiny_embedding import SOURCES, write_embedding_data
from tests.support.tiny_training import Killed, ignore, losses, metric_lines, run_files

Configure = Callable[..., Config]
ALL = "training.stages=[{name='all', train=['all'], epochs=2, learning_rate=0.01}]"
ALONE = (
    "model.heads=[]",
    "data.train=[]",
    "data.test=[]",
    "training.stages=[{name='all', train=['backbone'], learning_rate=0.01}]",
)


@pytest.fixture
def embedding(configure: Configure, config_file: Path) -> Configure:
    """Returns a function that reads the small configuration with the embedding as a task, with further overrides."""
    overrides = write_embedding_data(config_file.parent)
    return lambda *more: configure(*overrides, *more)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_run_teaches_heads_and_embedding(
    embedding: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyhead_training.loop.training_log._LOG_STEPS", 1)
    evaluation = train(embedding(), tmp_path / "run", report=ignore)
    assert evaluation is not None
    found = lines(tmp_path / "run")
    steps = [line for line in found if "loss" in line]
    # The first stage has a frozen backbone, and no embedding to teach.
    first = [line for line in steps if line["stage"] == "first"]
    assert len(first) == 5
    assert all(line["losses"]["topic"] is not None and not any(line["embedding"].values()) for line in first)
    second = [line for line in steps if line["stage"] == "second"]
    taught = [[name for name, loss in line["embedding"].items() if loss is not None] for line in second]
    names = ["cosent", "cosine", "pairs", "triplets"]
    # 12 rows of each source, in steps of 4 or 6; 18 labelled rows in 5 steps.
    assert {name: taught.count([name]) for name in names} == {"cosent": 3, "cosine": 3, "pairs": 2, "triplets": 3}
    assert taught.count([]) == 5 == sum(line["losses"]["topic"] is not None for line in second)
    # Mixed: neither kind comes first as a whole.
    assert taught != sorted(taught)
    assert taught != sorted(taught, reverse=True)
    cosine = next(line for line in second if line["embedding"]["cosine"] is not None)
    assert cosine["loss"] == pytest.approx(0.5 * cosine["embedding"]["cosine"])
    assert found[-1]["validation"]["data.similarity"].keys() == {"spearman"}
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(evaluation.to_json()))
    assert [form["dimensions"] for form in written["similarity"]["forms"]] == [32] * 3 + [16] * 3 + [8] * 3
    task = written["retrieval"]["small"]
    assert (task["queries"], task["documents"], len(task["results"])) == (6, 12, 9)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [source["rows"] for source in data["embedding"]] == [12] * 4
    assert data["embedding"][0]["scores"] == [0.0, 2.5, 5.0]
    for name in ("report.html", "README.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "nDCG@10" in text
        assert "binary" in text


@pytest.mark.parametrize("name", SOURCES)
def test_each_loss_falls(embedding: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("polyhead_training.loop.training_log._LOG_STEPS", 1)
    stage = "training.stages=[{name='all', train=['backbone'], epochs=16, learning_rate=0.002}]"
    train(embedding(f"data.embedding=[{SOURCES[name]}]", *ALONE[:3], stage), tmp_path / "run", report=ignore)
    found = losses(tmp_path / "run")
    # One pair in the wrong order makes the CoSENT loss of a batch large, until the end.
    assert statistics.median(found[-8:]) < 0.8 * statistics.median(found[:4])


def test_embedding_alone_needs_no_heads(embedding: Configure, tmp_path: Path) -> None:
    evaluation = train(embedding(*ALONE), tmp_path / "run", report=ignore)
    assert evaluation is not None
    assert evaluation.splits == {"validation": {}}
    run = load_run(tmp_path / "run")
    assert run.heads == []
    assert run.content["config"]["model"]["prompts"] == {"query": "query: "}


def test_stage_may_teach_the_embedding_beside_frozen_heads(embedding: Configure, tmp_path: Path) -> None:
    heads = "{name='heads', train=['heads'], learning_rate=0.01}"
    texts = "{name='texts', train=['backbone'], tasks=['embedding'], learning_rate=0.01}"
    train(embedding(f"training.stages=[{heads}]", "training.select=last"), tmp_path / "heads", report=ignore)
    train(embedding(f"training.stages=[{heads}, {texts}]", "training.select=last"), tmp_path / "both", report=ignore)
    before, after = (load_run(tmp_path / name).model.state_dict() for name in ("heads", "both"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("backbone.") for name in changed)


def test_run_without_embedding_data_is_unchanged_by_the_task(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run", max_steps=10, report=ignore)
    assert all("embedding" not in line for line in metric_lines(tmp_path / "run"))


@pytest.mark.parametrize("name", SOURCES)
def test_killed_run_resumes_to_the_same_bytes(embedding: Configure, tmp_path: Path, name: str) -> None:
    config = embedding(f"data.embedding=[{SOURCES[name]}]", ALL, "training.checkpoint_steps=3")
    train(config, tmp_path / "whole", report=ignore)
    calls = iter(range(1, 100))

    def stop() -> bool:
        if next(calls) == 8:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(config, tmp_path / "killed", stop=stop, report=ignore)
    train(config, tmp_path / "killed", policy="resume", report=ignore)
    assert run_files(tmp_path / "killed") == run_files(tmp_path / "whole")
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "whole")


def test_resumed_run_requires_the_same_texts(embedding: Configure, tmp_path: Path, config_file: Path) -> None:
    train(embedding(), tmp_path / "run", max_steps=1, report=ignore)
    path = config_file.with_name("scored.jsonl")
    path.write_text(path.read_text().replace('"score": 0', '"score": 1'))
    assert train(embedding(), tmp_path / "run", max_steps=1, policy="resume", report=ignore) is not None


def test_best_epoch_counts_the_similarity(
    embedding: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spearman = iter([0.1, 0.9, 0.2] * 2)

    class Found:
        def __init__(self) -> None:
            self.spearman = next(spearman)

    monkeypatch.setattr("polyhead_training.train.embedding_correlations", lambda *_: Found())
    stage = "training.stages=[{name='all', train=['backbone'], epochs=3, learning_rate=0.01}]"
    for select in ("best", "last"):
        source = f"data.embedding=[{SOURCES['cosent']}]"
        train(embedding(source, *ALONE[:3], stage, f"training.select={select}"), tmp_path / select, report=ignore)
    assert run_files(tmp_path / "best") != run_files(tmp_path / "last")


def test_diverging_texts_are_named(embedding: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = EmbeddingTask._embed

    def broken(self: EmbeddingTask, numbers: Any) -> torch.Tensor:
        texts = torch.tensor([int(number) for number in numbers])
        return embed(self, numbers) / (texts != 0)[:, None].float()

    monkeypatch.setattr(EmbeddingTask, "_embed", broken)
    with pytest.raises(DivergenceError, match=r"scored\.jsonl:1: 'The parcel"):
        train(embedding(f"data.embedding=[{SOURCES['cosent']}]", ALL), tmp_path / "run", report=ignore)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.matryoshka=[64]", r"training\.matryoshka: 64 exceeds the 32 dimensions"),
        (
            "training.stages=[{name='h', train=['heads'], tasks=['embedding'], learning_rate=0.1}]",
            r"training\.stages\.0\.tasks: \['embedding'\]: the stage has no data to learn from",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_errors(
    embedding: Configure, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(embedding(override), tmp_path / "run", report=ignore)

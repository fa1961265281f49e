"""Runs with heads of every kind: training, evaluation, report, model card and run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import StoppedError
from polyhead_training.evaluation.evaluate import Evaluation
from polyhead_training.heads import Head
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import output_names, output_width
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train
from pydantic import ValidationError

from tests.support import every_kind
from tests.support.tiny_training import ignore, metric_lines, run_files, write_config, write_jsonl

Configure = Callable[..., Config]


class Trained(NamedTuple):
    """A run with heads of every kind, its configuration, what it reported and its evaluation; read-only."""

    path: Path
    config: Config
    lines: list[str]
    evaluation: Evaluation


@pytest.fixture(scope="module")
def trained(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("every-kind")
    path = write_config(folder, checkpoints["bert"])
    write_jsonl(folder / "train.jsonl", every_kind.rows())
    write_jsonl(folder / "test.jsonl", every_kind.rows()[:12])
    config = read_config(path, [every_kind.OVERRIDE, "training.stages.0.epochs=3"])
    lines: list[str] = []
    evaluation = train(config, folder / "run", report=lines.append)
    assert evaluation is not None
    return Trained(folder / "run", config, lines, evaluation)


def test_run_trains_and_evaluates_heads_of_every_kind(trained: Trained) -> None:
    scores = {name: found.score.to_json() for name, found in trained.evaluation.splits["test"].items()}
    assert [scores[name]["kind"] for name in ("tags", "stars", "price")] == ["multilabel", "ordinal", "regression"]
    for name, metric in (("tags", "mean_average_precision"), ("stars", "mae"), ("price", "rmse")):
        assert math.isfinite(scores[name][metric])
    # The answers of every epoch are logged, on the scale of the data.
    epochs = [line["validation"] for line in metric_lines(trained.path) if "validation" in line]
    assert all(0 < found["price"]["mae"] < 100 for found in epochs)  # type: ignore[index]
    assert any("micro-F1" in line and "QWK" in line and "RMSE" in line for line in trained.lines)
    run = load_run(trained.path)
    thresholds = {head["name"]: head["thresholds"] for head in run.heads}
    assert len(thresholds.pop("tags")) == 3
    assert set(thresholds.values()) == {None}
    card, report = ((trained.path / name).read_text() for name in ("README.md", "report.html"))
    assert "| `price` | regression |  | 1 |  |" in card
    assert "mAP" in card
    assert "Prediction over true number" in report
    assert "Average precision" in report


def test_mean_and_spread_are_folded_into_the_last_layer(trained: Trained) -> None:
    run = load_run(trained.path)
    assert isinstance(run.model.heads["price"], Head)
    assert run.model.heads["price"].standardization is None
    prices = [float(str(row.labels[4])) for row in read_data(trained.config).train]
    assert run.model.config.heads[4]["spread"] == pytest.approx(float(np.std(prices)))
    ids = torch.tensor([[2, 9, 10, 3]])
    price = run.model(ids, torch.ones_like(ids)).logits["price"].item()
    assert 900 < price < 1100


def test_folding_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    head = Head("regression", 0, 4, 4, 0.0).eval()
    head.standardization = 1e4, 250.0
    features = torch.randn(5, 4)
    before = head(features)
    head.fold()
    torch.testing.assert_close(head(features), before)
    torch.testing.assert_close(head.layers(features), before)


def test_interrupted_run_resumes_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    steps = iter([False] * 7 + [True])
    with pytest.raises(StoppedError):
        train(trained.config, tmp_path / "part", stop=lambda: next(steps), report=ignore)
    train(trained.config, tmp_path / "part", policy="resume", report=ignore)
    assert run_files(tmp_path / "part") == run_files(trained.path)


def test_untrained_model_predicts_about_the_mean(configure: Configure, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", every_kind.rows())
    config = configure("model.heads=[{name='price', kind='regression'}]", "training.stages=[]", "data.test=[]")
    train(config, tmp_path / "run", report=ignore)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_bytes())["validation"]["price"]
    assert found["rmse"] < 20


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"kind": "regression", "labels": ["a", "b"]}, "a regression head predicts a number: remove labels"),
        ({"kind": "regression", "class_weights": "balanced"}, "a regression head has no labels: remove class_weights"),
        ({"kind": "regression", "label_smoothing": 0.1}, "remove label_smoothing"),
        ({"kind": "regression", "threshold": 0.4}, "a regression head predicts a number: remove threshold"),
        ({"kind": "ordinal", "threshold": "best"}, "predicts the median of its probabilities: remove threshold"),
        ({"kind": "ordinal", "labels": ["1"]}, "requires at least two labels"),
        ({"kind": "multilabel", "labels": ["a", "a"]}, "all different"),
        ({"kind": "multilabel", "separator": ""}, "separator"),
        ({"kind": "multilable"}, "kind"),
    ],
)
def test_contradictory_head_is_rejected(head: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadConfig.model_validate({"name": "any", **head})


def test_output_names_of_other_kinds_are_made_of_the_heads_names() -> None:
    heads = [("tags", "multilabel"), ("stars", "ordinal"), ("price", "regression"), ("topic", "softmax")]
    assert list(output_names(heads).values()) == ["tags_logits", "stars_logits", "price_logits", "logits"]


@pytest.mark.parametrize(
    ("kind", "width"), [("softmax", 4), ("sigmoid", 1), ("multilabel", 4), ("ordinal", 3), ("regression", 1)]
)
def test_width_of_each_kind(kind: str, width: int) -> None:
    assert output_width(kind, 4) == width

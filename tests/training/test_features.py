"""While the backbone is frozen it computes each text once, and the results are those of computing it every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.config_file import read_config
from polyhead_training.loop.distillation import NAME as BASE_NAME
from polyhead_training.model import PolyheadModel, TextVectors
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train

from tests.support.tiny_training import Killed, ignore, metric_lines, run_files, write_config

Configure = Callable[..., Config]

TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 18, 6, 6
NO_CACHE = "training.feature_cache_mb=0"
HEADS = "{name='heads', train=['heads', 'pooling'], epochs=3, learning_rate=0.01}"
ALL = "{name='all', train=['all'], epochs=1, learning_rate=0.01}"
MORE_HEADS = "{name='more heads', train=['heads'], epochs=2, learning_rate=0.01}"


def stages(*chosen: str) -> str:
    return f"training.stages=[{', '.join(chosen)}]"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each forward pass of the backbone."""
    sizes: list[int] = []
    encode = PolyheadModel.encode

    def count(self: PolyheadModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextVectors:
        sizes.append(len(input_ids))
        return encode(self, input_ids, attention_mask)

    monkeypatch.setattr(PolyheadModel, "encode", count)
    return sizes


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_run(folder).model.state_dict())


def assert_equal_runs(first: Path, second: Path) -> None:
    """Batches of other rows round differently, so two ways to compute a text agree to a few units of the last place."""
    for name, values in weights(first).items():
        torch.testing.assert_close(values, weights(second)[name], rtol=0, atol=1e-4, msg=name)
    for ours, theirs in zip(metric_lines(first), metric_lines(second), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), abs=1e-4)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "cls_mean"), ("roberta", "cls"), ("distilbert", "mean")])
def test_run_equals_one_without_cache(
    configure: Configure, checkpoints: dict[str, Path], tmp_path: Path, family: str, pooling: str
) -> None:
    overrides = [
        f"model.backbone={checkpoints[family]}",
        f"model.pooling={pooling}",
        stages(HEADS if pooling == "cls_mean" else MORE_HEADS),
    ]
    train(configure(*overrides), tmp_path / "cached", report=ignore)
    train(configure(*overrides, NO_CACHE), tmp_path / "plain", report=ignore)
    assert_equal_runs(tmp_path / "cached", tmp_path / "plain")


def test_embedding_that_trains_with_the_pooling_is_distilled_as_without_cache(
    configure: Configure, tmp_path: Path
) -> None:
    overrides = ["model.embedding_pooling=shared", stages(HEADS)]
    train(configure(*overrides), tmp_path / "cached", report=ignore)
    train(configure(*overrides, NO_CACHE), tmp_path / "plain", report=ignore)
    assert_equal_runs(tmp_path / "cached", tmp_path / "plain")
    assert any(line.get("distillation") for line in metric_lines(tmp_path / "cached"))


@pytest.mark.usefixtures("new_process_state")
def test_mixed_precision_trains_on_the_vectors_of_mixed_precision(configure: Configure, tmp_path: Path) -> None:
    overrides = ["training.mixed_precision=bf16", stages(HEADS)]
    train(configure(*overrides), tmp_path / "cached", report=ignore)
    train(configure(*overrides, NO_CACHE), tmp_path / "plain", report=ignore)
    for ours, theirs in zip(metric_lines(tmp_path / "cached"), metric_lines(tmp_path / "plain"), strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), abs=0.02)
    assert {values.dtype for values in weights(tmp_path / "plain").values()} == {torch.float32}


@pytest.mark.parametrize(("overrides", "epochs"), [((), 1), ((NO_CACHE,), 3)])
def test_frozen_backbone_computes_each_text_once(
    configure: Configure, tmp_path: Path, encoded: list[int], overrides: tuple[str, ...], epochs: int
) -> None:
    train(configure(stages(HEADS), *overrides), tmp_path / "run", report=ignore)
    evaluations = 1 if epochs == 1 else epochs + 1
    assert sum(encoded) == TRAIN_ROWS * epochs + VALIDATION_ROWS * evaluations + TEST_ROWS


def test_embeddings_before_training_use_the_vectors_of_the_frozen_stage(
    configure: Configure, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default schedule: one epoch of the heads, then distillation while layers train."""
    written: list[Any] = []

    def stop_after_embedding(path: Path) -> None:
        written.append(np.load(path))
        raise Killed

    monkeypatch.setattr("polyhead_training.loop.distillation.BaseEmbeddings", stop_after_embedding)
    for overrides, expected in (((), TRAIN_ROWS), ((NO_CACHE,), 2 * TRAIN_ROWS)):
        encoded.clear()
        with pytest.raises(Killed):
            train(configure(*overrides), tmp_path / "run", policy="restart", report=ignore)
        assert sum(encoded) == expected + VALIDATION_ROWS
    assert BASE_NAME in {path.name for path in (tmp_path / "run.in_progress").iterdir()}
    # Equal to the last bit: a run that was resumed in between may compute them either way.
    np.testing.assert_array_equal(*written)


def test_few_steps_compute_only_their_own_texts(configure: Configure, tmp_path: Path, encoded: list[int]) -> None:
    train(configure(stages(HEADS), "data.test=[]"), tmp_path / "run", max_steps=2, report=ignore)
    assert VALIDATION_ROWS < sum(encoded) <= 2 * 4 + VALIDATION_ROWS


def test_vectors_are_computed_again_after_the_backbone_has_trained(configure: Configure, tmp_path: Path) -> None:
    overrides = [stages(HEADS, ALL, MORE_HEADS), "training.select=last"]
    train(configure(*overrides), tmp_path / "cached", report=ignore)
    train(configure(*overrides, NO_CACHE), tmp_path / "plain", report=ignore)
    # Training the backbone amplifies the differences; the vectors of the first stage would be far off.
    for ours, theirs in zip(metric_lines(tmp_path / "cached"), metric_lines(tmp_path / "plain"), strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), abs=1e-2)
    ours, theirs = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("cached", "plain"))
    assert ours["test"]["topic"]["nll"] == pytest.approx(theirs["test"]["topic"]["nll"], abs=1e-2)


def test_best_weights_are_evaluated_with_their_own_backbone(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch is that of a stage before the last one that trained the backbone."""
    scores = iter([0.9, 0.9] + [0.1] * 100)
    monkeypatch.setattr(
        "polyhead_training.train.quick_score", lambda *_: {"accuracy": None, "macro_f1": next(scores), "nll": None}
    )
    one_epoch = HEADS.replace("epochs=3", "epochs=1")
    train(configure(stages(one_epoch, ALL, MORE_HEADS)), tmp_path / "run", report=ignore)
    scores = iter([0.9, 0.9] + [0.1] * 100)
    train(configure(stages(one_epoch, ALL, MORE_HEADS), NO_CACHE), tmp_path / "plain", report=ignore)
    ours, theirs = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("run", "plain"))
    assert ours["validation"]["topic"]["nll"] == pytest.approx(theirs["validation"]["topic"]["nll"], abs=1e-4)


def test_vectors_beyond_the_limit_are_not_kept_and_the_message_names_the_setting(
    configure: Configure, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A row of the tiny backbone takes 2 x 32 x 4 bytes, so the training rows fit but not those of validation.
    monkeypatch.setattr("polyhead_training.features._MEGABYTE", TRAIN_ROWS * 256 + 1)
    messages: list[str] = []
    config = configure(stages(HEADS), "training.feature_cache_mb=1", "data.test=[]")
    train(config, tmp_path / "run", report=messages.append)
    assert sum(encoded) == TRAIN_ROWS + 4 * VALIDATION_ROWS
    (message,) = [message for message in messages if "feature_cache_mb" in message]
    assert message.startswith(
        "validation: the backbone's vectors of 6 texts (1.54 kB) exceed training.feature_cache_mb"
    )


def test_embedding_that_did_not_train_is_not_evaluated_again(
    configure: Configure, config_file: Path, tmp_path: Path, encoded: list[int]
) -> None:
    pairs = [{"a": "one text", "b": "another text", "score": score} for score in (1.0, 2.0, 3.0)]
    pairs += [{"a": "yet another text", "b": "a fourth", "score": 4.0}]
    config_file.with_name("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    train(configure(stages(HEADS), "data.similarity=pairs.jsonl"), tmp_path / "run", report=ignore)
    assert sum(encoded) == TRAIN_ROWS + VALIDATION_ROWS + TEST_ROWS + 2 * len(pairs)
    similarity = json.loads((tmp_path / "run" / "evaluation.json").read_text())["similarity"]
    assert similarity["spearman_before"] == similarity["spearman_after"]


@pytest.fixture(scope="module", params=[(HEADS,), (HEADS, ALL, MORE_HEADS)], ids=["heads", "heads, all, heads"])
def complete_run(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    """An uninterrupted run and its configuration."""
    folder = tmp_path_factory.mktemp("complete")
    overrides = [stages(*request.param), "training.checkpoint_steps=3"]
    config = read_config(write_config(folder, checkpoints["bert"]), overrides)
    train(config, folder / "run", report=ignore)
    return config, folder / "run"


@pytest.mark.parametrize("killed_at", [2, 7, 17, 23])
def test_run_killed_in_any_forward_pass_or_step_resumes_to_the_same_bytes(
    complete_run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    config, complete = complete_run
    calls = 0
    encode, outputs = PolyheadModel.encode, PolyheadModel.outputs

    def killing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise Killed
            return method(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(PolyheadModel, "encode", killing(encode))
        patch.setattr(PolyheadModel, "outputs", killing(outputs))
        with pytest.raises(Killed):
            train(config, tmp_path / "run", report=ignore)
    train(config, tmp_path / "run", policy="resume", report=ignore)
    assert run_files(tmp_path / "run") == run_files(complete)
    assert metric_lines(tmp_path / "run") == metric_lines(complete)
    assert not (tmp_path / "run.in_progress").exists()

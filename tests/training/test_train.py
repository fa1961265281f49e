from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from polyhead_training import loop
from polyhead_training.backbone import find_backbone
from polyhead_training.batching import encode_rows
from polyhead_training.checkpoint import load_run
from polyhead_training.config import Config
from polyhead_training.data import read_data
from polyhead_training.errors import BackboneError, ConfigError, DivergenceError, RunError
from polyhead_training.evaluate import predict, score
from polyhead_training.loss import total_loss
from polyhead_training.stages import units
from polyhead_training.train import build_model, train

Configure = Callable[..., Config]


def silent(line: str) -> None:
    pass


def weights(config: Config, folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], ...]:
    """Weights of each unit before and after a run of a configuration."""
    torch.manual_seed(config.training.seed)
    fresh = build_model(config, find_backbone(config), read_data(config).heads)
    return tuple({name: unit.state_dict() for name, unit in units(m).items()} for m in (fresh, load_run(folder).model))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_every_family_trains_and_comes_back(
    configure: Configure, checkpoints: dict[str, Path], tmp_path: Path, family: str
) -> None:
    config = configure(f"model.backbone={checkpoints[family]}", "training.stages.0.train=['all']")
    scores = train(config, tmp_path / "run", max_steps=2, say=silent)
    run = load_run(tmp_path / "run")
    data, backbone = read_data(config), find_backbone(config)
    rows = encode_rows(data.test, data.heads, backbone.tokenizer, 32, backbone.pad_token_id)
    logits = predict(run.model, rows, 4)
    for column, head in enumerate(data.heads):
        assert score(head.kind, logits[head.name], rows.labels[:, column]) == scores["test"][head.name]
    before, after = weights(config, tmp_path / "run")
    for name, unit in before.items():
        changed = [key for key, value in unit.items() if not torch.equal(value, after[name][key])]
        assert changed, f"{name} did not train"


def test_frozen_tensors_are_bit_equal_after_a_run_and_unfrozen_ones_are_not(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure("training.stages.1.train=['layers:1', 'head:topic']", "training.stages.0.train=['head:topic']")
    train(config, tmp_path / "run", say=silent)
    before, after = weights(config, tmp_path / "run")
    for name in ("embeddings", "layer:1", "pooling", "head:sentiment"):
        assert all(torch.equal(value, after[name][key]) for key, value in before[name].items()), name
    for name in ("layer:2", "head:topic"):
        moved = {key for key, value in before[name].items() if not torch.equal(value, after[name][key])}
        # The softmax of attention does not see what a key's bias adds to all of its logits.
        assert {key for key in before[name] if "key.bias" not in key} <= moved


def test_training_learns_its_rows(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        "data={train='train.jsonl', validation='train.jsonl'}",
        "training.stages=[{name='all', train=['all'], epochs=30, learning_rate=0.003}]",
    )
    scores = train(config, tmp_path / "run", say=silent)["validation"]
    assert scores["topic"].accuracy == 1.0
    assert scores["sentiment"].accuracy == 1.0
    assert scores["topic"].majority_baseline == pytest.approx(1 / 6)


def test_same_seed_gives_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(configure(), tmp_path / name, max_steps=3, say=silent)
    train(configure("training.seed=9"), tmp_path / "third", max_steps=3, say=silent)
    first, second, third = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("first", "second", "third")
    )
    assert first == second
    assert first != third


def test_rows_with_one_label_each_train_both_heads(
    configure: Configure,
    rows: list[dict[str, Any]],
    write_jsonl: Callable[[str, Sequence[object]], Path],
    tmp_path: Path,
) -> None:
    write_jsonl("train.jsonl", [row | {missing: None} for row in rows for missing in ("label", "sentiment")])
    config = configure()
    scores = train(config, tmp_path / "run", say=silent)["validation"]
    assert scores["topic"].rows > 0
    assert scores["sentiment"].rows > 0
    assert scores["topic"].rows + scores["sentiment"].rows == len(read_data(config).validation) == 12
    before, after = weights(config, tmp_path / "run")
    for name in ("head:topic", "head:sentiment"):
        assert not [key for key, value in before[name].items() if torch.equal(value, after[name][key])], name


def test_metrics_have_a_line_for_logged_steps_and_epochs(configure: Configure, tmp_path: Path) -> None:
    train(configure("training.stages.0.epochs=3"), tmp_path / "run", say=silent)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["stage"]) for line in lines if "loss" in line] == [(10, "first"), (20, "second")]
    assert [(line["step"], line["epoch"]) for line in lines if "epoch" in line] == [(5, 1), (10, 2), (15, 3), (20, 1)]
    # The last step's own rate, not the 0 that comes after it; 2 of the first stage's 15 steps are its warmup.
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx([0.01 * 6 / 13, 0.001 / 5])
    assert set(lines[-1]["validation_accuracy"]) == {"topic", "sentiment"}


def test_evaluation_file_says_what_training_returned(configure: Configure, tmp_path: Path) -> None:
    scores = train(configure(), tmp_path / "run", max_steps=1, say=silent)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written == {split: {name: vars(score) for name, score in heads.items()} for split, heads in scores.items()}
    assert list(written) == ["validation", "test"]
    assert written["test"]["topic"]["rows"] == 6


def test_max_steps_ends_the_run_early(configure: Configure, tmp_path: Path) -> None:
    said: list[str] = []
    train(configure(), tmp_path / "run", max_steps=7, say=said.append)
    assert [line for line in said if line.startswith("stage")] == [
        "stage first: 5 steps, learning rate up to 0.01",
        "stage second: 2 steps, learning rate up to 0.001",
    ]


def test_loss_that_is_not_finite_stops_the_run_and_leaves_nothing(configure: Configure, tmp_path: Path) -> None:
    overrides = ["training.stages.0.learning_rate=1e30", "training.stages.0.train=['all']", "training.warmup=0"]
    with pytest.raises(DivergenceError, match=r"stage 'first', step [23]: .*lower the stage's learning_rate"):
        train(configure(*overrides), tmp_path / "runs" / "run", say=silent)
    assert list((tmp_path / "runs").iterdir()) == []


def test_gradient_that_is_not_finite_stops_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(*arguments: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same finite loss, with a gradient that is not a number."""
        loss, losses = total_loss(*arguments)
        return loss + (loss * 0).sqrt(), losses

    monkeypatch.setattr(loop, "total_loss", steep)
    with pytest.raises(DivergenceError, match="stage 'first', step 1: the loss or its gradient is not finite"):
        train(configure(), tmp_path / "run", say=silent)
    assert not (tmp_path / "run").exists()


def test_stage_forgets_the_optimizers_of_earlier_ones(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int] = []

    def prepare(self: Accelerator, *parts: Any) -> Any:
        known.append(len(self._optimizers))
        return whole(self, *parts)

    whole = Accelerator.prepare
    monkeypatch.setattr(Accelerator, "prepare", prepare)
    train(configure(), tmp_path / "run", say=silent)
    assert known == [0, 0]


def test_destination_is_checked_before_anything_is_read(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists and is not a run"):
        train(configure("data.train=nowhere.jsonl"), tmp_path / "mine", say=silent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.mixed_precision: 'fp16' needs a GPU"):
        train(configure("training.mixed_precision=fp16"), tmp_path / "run", say=silent)


@pytest.fixture
def new_process_state() -> Iterator[None]:
    """Forgets the precision of the tests before: accelerate keeps one a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_process_state")
def test_bfloat16_trains(configure: Configure, tmp_path: Path) -> None:
    train(configure("training.mixed_precision=bf16"), tmp_path / "run", max_steps=2, say=silent)
    assert next(load_run(tmp_path / "run").model.parameters()).dtype == torch.float32


def test_damaged_weights_are_a_backbone_error(
    configure: Configure, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoints["bert"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[: 500 if path.suffix == ".safetensors" else None])
    with pytest.raises(BackboneError, match="its weights cannot be read"):
        train(configure("model.backbone=copy"), tmp_path / "run", say=silent)

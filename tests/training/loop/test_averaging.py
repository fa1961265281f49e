from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.loop.averaging import Average, newest_share
from polyhead_training.loop.fit import HeadFitter
from polyhead_training.loop.loop import Loop
from polyhead_training.loop.step import Stepper
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train
from polyhead_training.training_config import StageConfig, TrainingConfig
from torch import nn

from tests.support.tiny_training import ignore, metric_lines

Configure = Callable[..., Config]


class FakeStage:
    """A stage of a single layer."""

    config = StageConfig(name="one", train=("all",), learning_rate=1.0)

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.layer = nn.Linear(2, 3)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.layer.parameters())


def averaged(kind: str, steps: int, **settings: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns the bias before and after each step of a stage that changes it at random, and its average at the end."""
    torch.manual_seed(0)
    stage = FakeStage(steps)
    average = Average(TrainingConfig.model_validate({"average": kind, **settings}), stage)  # type: ignore[arg-type]
    found = [stage.layer.bias.detach().clone()]
    for step in range(1, steps + 1):
        with torch.no_grad():
            stage.layer.bias.normal_()
        found.append(stage.layer.bias.detach().clone())
        average.update(step)
    average.apply()
    return found, stage.layer.bias.detach()


def test_swa_is_the_mean_of_the_second_half() -> None:
    found, average = averaged("swa", 8)
    torch.testing.assert_close(average, torch.stack(found[5:]).mean(dim=0))


def test_swa_of_one_step_is_that_step() -> None:
    found, average = averaged("swa", 1)
    assert torch.equal(average, found[1])


def test_ema_moves_by_one_minus_decay_once_the_average_is_old_enough() -> None:
    config = TrainingConfig(average="ema", ema_decay=0.9)
    assert newest_share(config, 1, 1000) == pytest.approx(9 / 11)
    assert newest_share(config, 80, 1000) == pytest.approx(0.1)
    assert newest_share(config, 1000, 1000) == pytest.approx(0.1)


def test_ema_is_the_recursive_mean() -> None:
    found, average = averaged("ema", 5, ema_decay=0.3)
    expected = found[0]
    for step, value in enumerate(found[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average, expected)


def test_without_averaging_nothing_is_kept() -> None:
    found, average = averaged("none", 3)
    assert torch.equal(average, found[-1])


def test_swapped_weights_return_after_an_error() -> None:
    stage = FakeStage(2)
    before = stage.layer.bias.detach().clone()
    average = Average(TrainingConfig(average="ema"), stage)  # type: ignore[arg-type]
    with torch.no_grad():
        stage.layer.bias.add_(1.0)

    def fail() -> None:
        with average.swapped():
            assert torch.equal(stage.layer.bias, before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(stage.layer.bias, before + 1.0)


@pytest.mark.parametrize("select", ["best", "last"])
def test_run_validates_selects_and_keeps_the_average(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    raw: list[torch.Tensor] = []
    take, end_epoch = Stepper.take, Loop._end_epoch

    def remember(self: Stepper, *arguments: Any) -> Any:
        found = take(self, *arguments)
        raw.append(self.model.pooling.mix.weight.detach().clone())
        return found

    def validated(self: Loop, *arguments: Any) -> None:
        kept.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        end_epoch(self, *arguments)

    monkeypatch.setattr(Stepper, "take", remember)
    monkeypatch.setattr(Loop, "_end_epoch", validated)
    stage = "training.stages=[{name='all', train=['all'], epochs=1, learning_rate=0.01}]"
    train(configure(stage, "training.average=swa", f"training.select={select}"), tmp_path / "run", report=ignore)
    final = load_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(final[name], tensor) for name, tensor in kept[-1].items())
    # Five steps: the second half are those after the second.
    torch.testing.assert_close(final["pooling.mix.weight"], torch.stack(raw[2:]).mean(dim=0))
    assert not torch.equal(final["pooling.mix.weight"], raw[-1])


def test_next_stage_starts_from_the_average(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[torch.Tensor] = []
    stepper = Loop._stepper

    def remember(self: Loop, *arguments: Any) -> Stepper | HeadFitter:
        starts.append(self.model.state_dict()["heads.topic.layers.1.weight"].clone())
        return stepper(self, *arguments)

    monkeypatch.setattr(Loop, "_stepper", remember)
    for name, average in (("plain", "none"), ("averaged", "ema")):
        train(configure(f"training.average={average}"), tmp_path / name, report=ignore)
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[1], starts[3])
    assert metric_lines(tmp_path / "plain") != metric_lines(tmp_path / "averaged")

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_training.config import Config
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.loop.agreement import divergence, r_drop_loss, teacher_loss
from polyhead_training.loop.loss import Objective, Totals
from polyhead_training.loop.step import Stepper
from polyhead_training.model_config import HeadConfig
from polyhead_training.train import train
from polyhead_training.training_config import TrainingConfig
from torch import Tensor
from torch.nn import functional

from tests.support.tiny_training import ignore, losses

Configure = Callable[..., Config]

HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("a", "b", "c")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes")),
)
LABELS = Targets((torch.tensor([0, 1, UNLABELLED, 2]), torch.tensor([1, UNLABELLED, 0, 1])), 4)


def logits(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "topic": torch.randn(4, 3, generator=generator, requires_grad=True),
        "sentiment": torch.randn(4, 1, generator=generator, requires_grad=True),
    }


def objective(**settings: Any) -> Objective:
    return Objective(HEADS, TrainingConfig(**settings), LABELS)


def test_divergence_of_a_softmax_is_that_of_torch() -> None:
    first, second = logits(0)["topic"], logits(1)["topic"]
    expected = functional.kl_div(second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(divergence("softmax", first, second), expected.sum(dim=1))


def test_divergence_of_a_number_counts_in_units_of_the_spread() -> None:
    target, found = torch.tensor([[3.0], [5.0]]), torch.tensor([[3.0], [9.0]])
    assert divergence("regression", target, found, spread=2.0).tolist() == [0.0, 2.0]


def test_divergence_of_a_sigmoid_is_that_of_a_softmax_of_two_labels() -> None:
    first, second = logits(0)["sentiment"], logits(1)["sentiment"]
    target, found = (torch.cat([torch.zeros_like(one), one], dim=1) for one in (first, second))
    torch.testing.assert_close(divergence("sigmoid", first, second), divergence("softmax", target, found))


def test_divergence_of_equal_logits_is_zero_and_finite_for_extreme_ones() -> None:
    far = torch.tensor([[500.0, -500.0, 0.0]])
    assert divergence("softmax", far, far).tolist() == [0.0]
    assert torch.isfinite(divergence("sigmoid", torch.tensor([[80.0]]), torch.tensor([[-80.0]]))).all()


def test_r_drop_is_symmetric_weighted_and_per_row() -> None:
    weighted = objective(loss_weights={"sentiment": 3.0})
    first, second = logits(0), logits(1)
    found = r_drop_loss(weighted, first, second, weighted.totals(LABELS))
    torch.testing.assert_close(found, r_drop_loss(weighted, second, first, weighted.totals(LABELS)))
    topic = divergence("softmax", first["topic"], second["topic"]) + divergence(
        "softmax", second["topic"], first["topic"]
    )
    sentiment = divergence("sigmoid", first["sentiment"], second["sentiment"]) + divergence(
        "sigmoid", second["sentiment"], first["sentiment"]
    )
    torch.testing.assert_close(found, (0.5 * topic + 1.5 * sentiment).sum() / 4)


def test_teacher_pulls_the_logits_towards_its_own() -> None:
    taught = objective()
    found, target = logits(0), {"topic": logits(1)["topic"].detach()}
    for temperature in (1.0, 4.0):
        loss = teacher_loss(taught, target, found, taught.totals(LABELS), temperature)
        (gradient,) = torch.autograd.grad(loss, found["topic"])
        closer = {"topic": (found["topic"] - gradient).detach()}
        assert teacher_loss(taught, target, closer, taught.totals(LABELS), temperature) < loss
    assert teacher_loss(taught, target, target, taught.totals(LABELS), 4.0) == 0.0


def test_micro_batches_add_up_to_the_step() -> None:
    module, first, second = objective(), logits(0), logits(1)
    totals = module.totals(LABELS)

    def part(found: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
        return {name: values[start:end] for name, values in found.items()}

    for compute in (r_drop_loss, functools.partial(teacher_loss, temperature=2.0)):
        shares = [compute(module, part(first, *ends), part(second, *ends), totals) for ends in ((0, 1), (1, 4))]
        torch.testing.assert_close(sum(shares), compute(module, first, second, totals))


def test_r_drop_changes_training_and_runs_the_model_twice(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Totals] = []
    run = Stepper._pass

    def count(self: Stepper, *arguments: Any) -> Any:
        passes.append(arguments[2])
        return run(self, *arguments)

    monkeypatch.setattr(Stepper, "_pass", count)
    stage = "training.stages=[{name='all', train=['all'], epochs=2, learning_rate=0.01}]"
    counts = []
    for weight in (0, 5):
        passes.clear()
        train(configure(stage, f"training.r_drop={weight}"), tmp_path / f"run-{weight}", report=ignore)
        counts.append(len(passes))
    assert counts == [10, 20]
    assert losses(tmp_path / "run-0") != losses(tmp_path / "run-5")

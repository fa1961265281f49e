from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.loop.loss import Losses, Objective, class_weights, head_loss
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.training_config import TrainingConfig
from torch import Tensor
from torch.nn import functional

HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("a", "b")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes")),
)


def targets(labels: Tensor) -> Targets:
    """Targets from the (rows, heads) label indices of heads with one label."""
    return Targets(tuple(labels.unbind(dim=1)), len(labels))


def objective(labels: Tensor, heads: tuple[HeadConfig, ...] = HEADS, **settings: Any) -> Objective:
    return Objective(heads, TrainingConfig(**settings), targets(labels))


def outputs(topic: Tensor, sentiment: Tensor, embedding: Tensor | None = None) -> Outputs:
    found = torch.zeros(len(topic), 3) if embedding is None else embedding
    return Outputs(found, {"topic": topic, "sentiment": sentiment})


def losses(objective_module: Objective, found: Outputs, labels: Tensor, base: Tensor | None = None) -> Losses:
    answers = targets(labels)
    result: Losses = objective_module(found, answers, objective_module.totals(answers), base)
    return result


def test_smoothing_and_weights_match_torch() -> None:
    logits, labels, weights = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, UNLABELLED]), torch.tensor([0.5, 2.0])
    plain = functional.cross_entropy(logits[:5], labels[:5], label_smoothing=0.2, reduction="none")
    expected = (weights[labels[:5]] * plain).sum()
    torch.testing.assert_close(head_loss("softmax", logits, labels, weights, 0.2), expected)
    # Two logits of a softmax are one of a sigmoid.
    difference = (logits[:, 1] - logits[:, 0]).unsqueeze(-1)
    torch.testing.assert_close(head_loss("sigmoid", difference, labels, weights, 0.2), expected)


def test_total_is_the_weighted_sum_of_the_heads_means() -> None:
    labels = torch.tensor([[0, 1], [1, UNLABELLED]])
    found = losses(
        objective(labels, loss_weights={"sentiment": 3.0}), outputs(torch.zeros(2, 2), torch.zeros(2, 1)), labels
    )
    torch.testing.assert_close(found.total, torch.tensor(4 * math.log(2)))
    torch.testing.assert_close(found.heads, torch.full((2,), math.log(2)))


def test_class_weights_give_the_weighted_mean_of_torch() -> None:
    heads = (HEADS[0].model_copy(update={"class_weights": {"a": 3.0}}), HEADS[1])
    labels = torch.tensor([[0, UNLABELLED], [1, UNLABELLED], [1, UNLABELLED]])
    topic = torch.randn(3, 2)
    found = losses(objective(labels, heads), outputs(topic, torch.zeros(3, 1)), labels)
    expected = functional.cross_entropy(topic, labels[:, 0], weight=torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(found.heads[0], expected)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_micro_batches_add_up_to_the_step(weighting: str) -> None:
    heads = (HEADS[0].model_copy(update={"class_weights": {"a": 3.0}, "label_smoothing": 0.1}), HEADS[1])
    labels = torch.tensor([[0, 1], [1, UNLABELLED], [UNLABELLED, 0], [1, 1], [UNLABELLED, UNLABELLED]])
    objective_module = objective(labels, heads, loss_weighting=weighting)
    topic, sentiment, embedding, base = (torch.randn(5, size) for size in (2, 1, 3, 3))
    whole = losses(objective_module, outputs(topic, sentiment, embedding), labels, base)
    totals = objective_module.totals(targets(labels))
    parts = [
        objective_module(
            outputs(topic[rows], sentiment[rows], embedding[rows]), targets(labels[rows]), totals, base[rows]
        )
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    for name in ("total", "heads", "distillation"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_head_without_labelled_rows_contributes_nothing_and_keeps_its_gradient() -> None:
    topic, sentiment = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    labels = torch.tensor([[0, UNLABELLED], [1, UNLABELLED], [1, UNLABELLED]])
    found = losses(objective(labels), outputs(topic, sentiment), labels)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.heads[1].item() == 0.0
    assert torch.equal(found.total, found.heads[0])
    assert sentiment.grad is not None
    assert torch.equal(sentiment.grad, torch.zeros(3, 1))
    assert topic.grad is not None
    assert topic.grad.abs().sum() > 0


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_head_without_labelled_rows_has_no_gradient_at_any_weight(scale: float) -> None:
    topic, sentiment = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    labels = torch.tensor([[0, UNLABELLED], [1, UNLABELLED], [1, UNLABELLED]])
    objective_module = objective(labels, loss_weights={"sentiment": 100.0}, loss_weighting="uncertainty")
    assert objective_module.log_variances is not None
    objective_module.log_variances.data = torch.tensor([0.0, -5.0])
    (scale * losses(objective_module, outputs(topic, sentiment), labels).total).backward()  # type: ignore[no-untyped-call]
    assert sentiment.grad is not None
    assert torch.equal(sentiment.grad, torch.zeros(3, 1))


def test_step_without_any_label_has_a_loss_of_zero() -> None:
    labels = torch.full((2, 2), UNLABELLED)
    found = losses(objective(labels), outputs(torch.randn(2, 2), torch.randn(2, 1)), labels)
    assert float(found.total) == 0.0


def test_distillation_is_one_minus_cosine() -> None:
    labels = torch.full((2, 2), UNLABELLED)
    embedding = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    base = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = losses(
        objective(labels, distillation=5.0), outputs(torch.zeros(2, 2), torch.zeros(2, 1), embedding), labels, base
    )
    assert float(found.distillation) == pytest.approx(0.5)
    assert float(found.total) == pytest.approx(2.5)


def test_uncertainty_weighting_follows_the_paper() -> None:
    labels = torch.tensor([[0, 1]])
    objective_module = objective(labels, loss_weighting="uncertainty")
    assert objective_module.log_variances is not None
    objective_module.log_variances.data = torch.tensor([1.0, -1.0])
    found = losses(objective_module, outputs(torch.zeros(1, 2), torch.zeros(1, 1)), labels)
    expected = math.exp(-1) * math.log(2) + 0.5 + math.exp(1) * math.log(2) - 0.5
    assert found.total.item() == pytest.approx(expected)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert objective_module.log_variances.grad is not None
    # A loss below the variance asks for a smaller variance.
    assert objective_module.log_variances.grad.tolist() == pytest.approx(
        [0.5 - math.exp(-1) * math.log(2), 0.5 - math.exp(1) * math.log(2)]
    )


def test_uncertainty_of_a_head_without_labels_has_no_gradient() -> None:
    labels = torch.tensor([[0, UNLABELLED]])
    objective_module = objective(labels, loss_weighting="uncertainty")
    losses(objective_module, outputs(torch.zeros(1, 2), torch.zeros(1, 1)), labels).total.backward()  # type: ignore[no-untyped-call]
    assert objective_module.log_variances is not None
    assert objective_module.log_variances.grad is not None
    assert objective_module.log_variances.grad[0] != 0
    assert objective_module.log_variances.grad[1] == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("none", [1.0, 1.0, 1.0]), ("balanced", [4 / (3 * 3), 4 / 3, 1.0]), ({"b": 5.0}, [1.0, 5.0, 1.0])],
)
def test_class_weights_follow_the_setting(setting: Any, expected: list[float]) -> None:
    head = HeadConfig(name="topic", kind="softmax", labels=("a", "b", "c"), class_weights=setting)
    assert class_weights(head, torch.tensor([0, 0, 0, 1, UNLABELLED])).tolist() == pytest.approx(expected)

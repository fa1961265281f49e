from __future__ import annotations

import math

import torch
from polyhead_training.config import HeadConfig
from polyhead_training.loss import UNLABELLED, head_loss, total_loss

HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("a", "b")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes")),
)


def test_softmax_loss_is_the_mean_over_labelled_rows() -> None:
    logits = torch.tensor([[0.0, 0.0], [9.0, -9.0], [math.log(3.0), 0.0]])
    labels = torch.tensor([0, UNLABELLED, 1])
    torch.testing.assert_close(head_loss("softmax", logits, labels), torch.tensor((math.log(2) + math.log(4)) / 2))


def test_sigmoid_loss_is_the_mean_over_labelled_rows() -> None:
    logits = torch.tensor([[0.0], [9.0], [math.log(3.0)]])
    labels = torch.tensor([0, UNLABELLED, 1])
    expected = torch.tensor((math.log(2) - math.log(0.75)) / 2)
    torch.testing.assert_close(head_loss("sigmoid", logits, labels), expected)


def test_total_loss_is_the_weighted_sum_over_heads() -> None:
    logits = {"topic": torch.zeros(1, 2), "sentiment": torch.zeros(1, 1)}
    total, losses = total_loss(logits, torch.tensor([[0, 1]]), HEADS, {"sentiment": 3.0})
    torch.testing.assert_close(total, torch.tensor(4 * math.log(2)))
    torch.testing.assert_close(losses["sentiment"], torch.tensor(math.log(2)))


def test_head_without_labelled_rows_contributes_nothing_and_keeps_its_gradient() -> None:
    topic, sentiment = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    labels = torch.tensor([[0, UNLABELLED], [1, UNLABELLED], [1, UNLABELLED]])
    total, losses = total_loss({"topic": topic, "sentiment": sentiment}, labels, HEADS, {})
    total.backward()  # type: ignore[no-untyped-call]
    assert losses["sentiment"].item() == 0.0
    assert torch.equal(total, losses["topic"])
    assert sentiment.grad is not None
    assert torch.equal(sentiment.grad, torch.zeros(3, 1))
    assert topic.grad is not None
    assert topic.grad.abs().sum() > 0


def test_batch_without_any_label_has_a_loss_of_zero() -> None:
    logits = {"topic": torch.randn(2, 2), "sentiment": torch.randn(2, 1)}
    total, _ = total_loss(logits, torch.full((2, 2), UNLABELLED), HEADS, {})
    assert float(total) == 0.0

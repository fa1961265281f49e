"""Losses of multilabel, ordinal and regression heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.loop.loss import Objective, class_weights, head_loss, standardizations
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.training_config import TrainingConfig
from torch import Tensor
from torch.nn import functional

TAGS = HeadConfig(name="tags", kind="multilabel", labels=("a", "b", "c"))
STARS = HeadConfig(name="stars", kind="ordinal", labels=("1", "2", "3"))
PRICE = HeadConfig(name="price", kind="regression")
ONES = torch.ones(2, 3)
# Four rows, of which the third has no answers.
TARGETS = Targets(
    (
        torch.tensor([[1, 0, 1], [0, 0, 0], [UNLABELLED] * 3, [0, 1, 0]], dtype=torch.int8),
        torch.tensor([2, 0, UNLABELLED, 1]),
        torch.tensor([10.0, 30.0, math.nan, 20.0]),
    ),
    4,
)
NO_WEIGHTS = torch.ones(0)


def _outputs(rows: int = 4) -> Outputs:
    torch.manual_seed(0)
    logits = {"tags": torch.randn(rows, 3), "stars": torch.randn(rows, 2), "price": 20 + 5 * torch.randn(rows, 1)}
    return Outputs(torch.zeros(rows, 2), logits)


def test_multilabel_loss_is_the_sum_over_labels_and_labelled_rows() -> None:
    logits, known = _outputs().logits["tags"], [0, 1, 3]
    expected = functional.binary_cross_entropy_with_logits(
        logits[known], TARGETS.heads[0][known].float(), reduction="sum"
    )
    torch.testing.assert_close(head_loss("multilabel", logits, TARGETS.heads[0], ONES, 0.0), expected)


def test_multilabel_loss_weighs_presence_and_absence_of_each_label() -> None:
    weights = torch.tensor([[1.0, 1.0, 0.5], [4.0, 1.0, 1.0]])
    labels = torch.tensor([[1, 0, 0]], dtype=torch.int8)
    found = head_loss("multilabel", torch.zeros(1, 3), labels, weights, 0.0)
    torch.testing.assert_close(found, torch.tensor((4 + 1 + 0.5) * math.log(2)))


def test_smoothing_moves_binary_targets_to_one_half() -> None:
    logits, labels = torch.tensor([[3.0]]), torch.tensor([[1]], dtype=torch.int8)
    expected = functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9]]), reduction="sum")
    torch.testing.assert_close(head_loss("multilabel", logits, labels, torch.ones(2, 1), 0.2), expected)


def test_ordinal_loss_asks_whether_the_answer_is_above_each_label() -> None:
    logits = _outputs().logits["stars"]
    above = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    expected = functional.binary_cross_entropy_with_logits(logits[[0, 1, 3]], above, reduction="sum")
    torch.testing.assert_close(head_loss("ordinal", logits, TARGETS.heads[1], torch.ones(3), 0.0), expected)


def test_ordinal_loss_is_weighted_by_the_rows_label() -> None:
    found = head_loss("ordinal", torch.zeros(2, 2), torch.tensor([0, 2]), torch.tensor([3.0, 1.0, 0.5]), 0.0)
    torch.testing.assert_close(found, torch.tensor(3.5 * 2 * math.log(2)))


def test_regression_loss_is_half_the_squared_error() -> None:
    found = head_loss(
        "regression", torch.tensor([[0.5], [3.0], [9.0]]), torch.tensor([0.0, 0.0, math.nan]), NO_WEIGHTS, 0
    )
    torch.testing.assert_close(found, torch.tensor(0.5 * 0.25 + 0.5 * 9.0))


@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "regression"])
def test_head_without_answers_keeps_its_gradient(kind: Any) -> None:
    column = ["multilabel", "ordinal", "regression"].index(kind)
    logits = torch.randn(1, (3, 2, 1)[column], requires_grad=True)
    weights = (ONES, torch.ones(3), NO_WEIGHTS)[column]
    loss = head_loss(kind, logits, TARGETS.heads[column][[2]], weights, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_regression_loss_does_not_depend_on_the_unit_of_the_data() -> None:
    losses = []
    for unit in (1.0, 1e5):
        targets = Targets((TARGETS.heads[2] * unit,), 4)
        objective = Objective([PRICE], TrainingConfig(), targets)
        outputs = Outputs(torch.zeros(4, 2), {"price": _outputs().logits["price"] * unit})
        losses.append(objective(outputs, targets, objective.totals(targets), None).total)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


def test_standardization_is_the_mean_and_the_deviation_of_the_answers() -> None:
    found = standardizations((TAGS, STARS, PRICE), TARGETS)
    assert list(found) == ["price"]
    assert found["price"] == pytest.approx((20.0, math.sqrt(200 / 3)))


@pytest.mark.parametrize(("numbers", "mean"), [([], 0.0), ([7.0], 7.0), ([1 / 3] * 49, 1 / 3)])
def test_a_fold_without_different_numbers_has_a_finite_loss(numbers: list[float], mean: float) -> None:
    targets = Targets((torch.tensor([*numbers, math.nan]),), len(numbers) + 1)
    assert standardizations([PRICE], targets)["price"] == pytest.approx((mean, 1.0))
    objective = Objective([PRICE], TrainingConfig(), targets)
    outputs = Outputs(torch.zeros(len(targets), 2), {"price": torch.zeros(len(targets), 1)})
    assert objective(outputs, targets, objective.totals(targets), None).total.isfinite()


def _shares(heads: tuple[HeadConfig, ...], parts: list[list[int]]) -> tuple[Tensor, Tensor]:
    outputs, objective = _outputs(), Objective(heads, TrainingConfig(), TARGETS)
    totals = objective.totals(TARGETS)
    whole = objective(outputs, TARGETS, totals, None).heads
    shares = [
        objective(
            Outputs(outputs.sentence_embedding[part], {name: found[part] for name, found in outputs.logits.items()}),
            TARGETS.rows(part),
            totals,
            None,
        ).heads
        for part in parts
    ]
    return whole, torch.stack(shares).sum(dim=0)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_micro_batches_add_up_to_the_step(weights: str) -> None:
    tags, stars = (head.model_copy(update={"class_weights": weights}) for head in (TAGS, STARS))
    whole, parts = _shares((tags, stars, PRICE), [[0], [1, 2], [3]])
    torch.testing.assert_close(whole, parts)
    assert (whole > 0).all()


def test_balanced_multilabel_weights_are_those_of_two_labels() -> None:
    head = TAGS.model_copy(update={"class_weights": "balanced"})
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [UNLABELLED] * 3], dtype=torch.int8)
    assert class_weights(head, labels).tolist() == [
        pytest.approx([4 / 6, 1.0, 0.5]),
        pytest.approx([2.0, 0.5, 1.0]),
    ]


def test_table_of_multilabel_weights_is_for_rows_with_the_label() -> None:
    head = TAGS.model_copy(update={"class_weights": {"b": 3.0}})
    assert class_weights(head, TARGETS.heads[0]).tolist() == [[1, 1, 1], [1, 3, 1]]

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.evaluation.calibration import fit_temperature
from polyhead_training.loop.loss import Objective, head_loss
from polyhead_training.loop.skew import logit_offsets
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.model_types import HeadKind
from polyhead_training.training_config import TrainingConfig
from torch import Tensor, nn

# 18 rows of the first label, 2 of the second, one row without a label.
SKEWED = torch.tensor([0] * 18 + [1] * 2 + [UNLABELLED])


def head(kind: HeadKind = "softmax", **settings: Any) -> HeadConfig:
    return HeadConfig(name="topic", kind=kind, labels=("a", "b"), **settings)


def as_targets(labels: Tensor) -> Targets:
    return Targets((labels,), len(labels))


def loss_of(config: HeadConfig, logits: Tensor, labels: Tensor, training_labels: Tensor) -> Tensor:
    """The mean loss of a head with the offsets of the training labels."""
    objective = Objective([config], TrainingConfig(), as_targets(training_labels))
    targets = as_targets(labels)
    outputs = Outputs(torch.zeros(len(logits), 2), {config.name: logits})
    found: Tensor = objective(outputs, targets, objective.totals(targets), None).total
    return found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_focal_loss_weighs_each_row_by_the_power_of_its_error(kind: HeadKind) -> None:
    # Log-odds of the second label, 3 and -1; both rows have the second label.
    odds = torch.tensor([3.0, -1.0])
    logits = odds[:, None] if kind == "sigmoid" else torch.stack([torch.zeros(2), odds], dim=1)
    probabilities = torch.sigmoid(odds)
    expected = ((1 - probabilities) ** 2 * -probabilities.log()).mean()
    torch.testing.assert_close(loss_of(head(kind, loss="focal"), logits, torch.tensor([1, 1]), SKEWED), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_focal_loss_with_gamma_0_is_the_cross_entropy(kind: HeadKind) -> None:
    logits, labels = torch.randn(5, 1 if kind == "sigmoid" else 2), torch.tensor([0, 1, 1, UNLABELLED, 0])
    found = loss_of(head(kind, loss="focal", focal_gamma=0.0, label_smoothing=0.1), logits, labels, SKEWED)
    torch.testing.assert_close(found, loss_of(head(kind, label_smoothing=0.1), logits, labels, SKEWED))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradient_of_the_focal_loss_is_finite_for_certain_predictions(gamma: float) -> None:
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    head_loss("softmax", logits, torch.tensor([0, 0]), torch.ones(2), 0.0, focal_gamma=gamma).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_offsets_are_the_logarithms_of_the_shares_of_the_labels() -> None:
    adjusted = head(loss="logit_adjusted")
    torch.testing.assert_close(logit_offsets(adjusted, SKEWED), torch.tensor([math.log(0.9), math.log(0.1)]))
    torch.testing.assert_close(
        logit_offsets(head("sigmoid", loss="logit_adjusted"), SKEWED), torch.tensor([math.log(1 / 9)])
    )
    assert logit_offsets(head(), SKEWED).tolist() == [0.0, 0.0]


def test_label_without_rows_has_a_finite_offset() -> None:
    assert torch.isfinite(logit_offsets(head(loss="logit_adjusted"), torch.zeros(4, dtype=torch.int64))).all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("loss", "expected"), [("cross_entropy", math.log(1 / 9)), ("logit_adjusted", 0.0)])
def test_logit_adjusted_head_learns_the_odds_of_equally_frequent_labels(
    kind: HeadKind, loss: str, expected: float
) -> None:
    """Without any features, a cross-entropy learns the labels' frequencies, the logit-adjusted loss nothing."""
    bias = nn.Parameter(torch.zeros(1 if kind == "sigmoid" else 2))
    optimizer = torch.optim.LBFGS([bias], max_iter=50)
    rows = SKEWED[:20]

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss_of(head(kind, loss=loss), bias.expand(20, -1), rows, SKEWED)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    odds = bias[0] if kind == "sigmoid" else bias[1] - bias[0]
    assert odds.item() == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_temperature_of_a_logit_adjusted_head_is_that_of_equally_frequent_labels(kind: HeadKind) -> None:
    """Logits twice as large as the log-odds for equally frequent labels, of rows with skewed labels."""
    rng = np.random.default_rng(0)
    targets = (rng.random(20_000) < 0.05).astype(np.int64)
    # Normal distributions with mean -1 and deviation 1, and mean 1 and deviation 3.
    x = rng.normal(np.where(targets == 1, 1.0, -1.0), np.where(targets == 1, 3.0, 1.0))
    odds = (x + 1.0) ** 2 / 2.0 - (x - 1.0) ** 2 / 18.0 - np.log(3.0)
    doubled = 2.0 * odds[:, None]
    logits = doubled if kind == "sigmoid" else np.hstack([np.zeros_like(doubled), doubled])
    assert fit_temperature(kind, logits, targets, balanced=True) == pytest.approx(2.0, rel=0.05)
    # Control: with the rows' own frequencies, the missing prior passes for overconfidence.
    assert fit_temperature(kind, logits, targets) != pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal_gamma": 1.0}, "only the focal loss has a gamma"),
        ({"loss": "logit_adjusted", "class_weights": "balanced"}, "correct the same skew: remove one"),
    ],
)
def test_contradicting_losses_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**settings)

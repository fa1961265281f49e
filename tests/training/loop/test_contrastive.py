from __future__ import annotations

from collections import Counter

import pytest
import torch
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.loop.contrastive import ContrastiveObjective, contrastive_epoch, pair_loss
from polyhead_training.model import Outputs
from polyhead_training.model_config import HeadConfig
from polyhead_training.training_config import TrainingConfig
from torch import Tensor, nn
from torch.nn import functional

HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("a", "b")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("no", "yes")),
)


def test_pair_loss_is_the_mean_over_equal_and_over_different_labels() -> None:
    embedding = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    equal = [(0.6 - 1) ** 2, (0.0 - 1) ** 2]
    different = [0.0, 1.0, 0.8**2, 0.6**2]
    expected = 0.5 * (sum(equal) / 2 + sum(different) / 4)
    assert pair_loss(embedding, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0], [], [0, 1], [0, 0]])
def test_pair_loss_of_few_rows_is_finite_and_connected(labels: list[int]) -> None:
    embedding = torch.ones(len(labels), 2, requires_grad=True)
    pair_loss(functional.normalize(embedding, dim=-1), torch.tensor(labels, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert torch.isfinite(embedding.grad).all()


def test_training_on_the_loss_separates_labels() -> None:
    torch.manual_seed(0)
    vectors, labels = nn.Parameter(torch.randn(12, 8)), torch.tensor([0, 1, 2] * 4)
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        pair_loss(functional.normalize(vectors, dim=-1), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    embedding = functional.normalize(vectors.detach(), dim=-1)
    cosines = embedding @ embedding.T
    equal = labels[:, None] == labels[None]
    assert cosines[equal].min() > 0.9
    assert cosines[~equal].max() < 0.3


def as_targets(labels: Tensor) -> Targets:
    return Targets(labels.unbind(dim=1), len(labels))


def losses(labels: Tensor, embedding: Tensor, base: Tensor | None = None, distillation: float = 0.0) -> Tensor:
    objective = ContrastiveObjective(HEADS, TrainingConfig(distillation=distillation))
    targets = as_targets(labels)
    found: Tensor = objective(Outputs(embedding, {}), targets, objective.totals(targets), base).total
    return found


def test_each_head_compares_its_labelled_rows() -> None:
    embedding = torch.randn(5, 4)
    labels = torch.tensor([[0, UNLABELLED], [0, 1], [1, 0], [UNLABELLED, 0], [UNLABELLED, UNLABELLED]])
    unit = functional.normalize(embedding, dim=-1)
    expected = pair_loss(unit[:3], labels[:3, 0]) + pair_loss(unit[1:4], labels[1:4, 1])
    torch.testing.assert_close(losses(labels, embedding), expected)


def test_distillation_is_added() -> None:
    embedding, labels = torch.eye(2), torch.full((2, 2), UNLABELLED)
    base = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert losses(labels, embedding, base, distillation=0.4).item() == pytest.approx(0.4 * 0.5)


def test_micro_batches_of_equal_size_add_up_to_the_mean_of_their_losses() -> None:
    embedding, labels = torch.randn(8, 4), torch.tensor([[0, 1], [1, 0]] * 4)
    objective = ContrastiveObjective(HEADS, TrainingConfig())
    totals = objective.totals(as_targets(labels))
    parts = [
        objective(Outputs(embedding[part], {}), as_targets(labels[part]), totals, None).total
        for part in (slice(4), slice(4, 8))
    ]
    whole = [losses(labels[part], embedding[part]) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(parts), sum(whole) / 2)


def test_epoch_contains_every_labelled_row_once() -> None:
    labels = torch.tensor([[n % 3, n % 2] for n in range(50)] + [[UNLABELLED, UNLABELLED]])
    steps = contrastive_epoch(labels, 16, seed=0, number=0)
    assert sorted(row for step in steps for row in step) == list(range(50))
    assert {len(step) for step in steps} <= {12, 13}


def test_step_holds_several_rows_of_several_labels() -> None:
    """With 64 labels, random steps of 32 rows would hardly contain two rows with equal labels."""
    labels = torch.arange(64).repeat(5)[:, None]
    for step in contrastive_epoch(labels, 32, seed=0, number=0):
        counts = Counter(labels[step, 0].tolist())
        assert len(counts) > 4
        assert max(counts.values()) > 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    labels = torch.arange(4).repeat(20)[:, None]
    first = contrastive_epoch(labels, 16, seed=0, number=0)
    assert contrastive_epoch(labels, 16, seed=0, number=0) == first
    assert contrastive_epoch(labels, 16, seed=0, number=1) != first
    assert contrastive_epoch(labels, 16, seed=1, number=0) != first

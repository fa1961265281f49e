"""The losses of the embedding against values computed by hand, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from polyhead_training.loop.embedding_losses import (
    LOSSES,
    Targets,
    cosent,
    cosine,
    matryoshka,
    ranking,
    symmetric_ranking,
)
from torch import Tensor
from torch.nn import functional


def turned(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def pairs(*degrees: float) -> Tensor:
    """(R, 2, 2) pairs, the second text turned away from the first by these degrees."""
    return torch.stack([turned(*[0.0] * len(degrees)), turned(*degrees)], dim=1)


def targets(scores: list[float], groups: list[list[int]] | None = None) -> Targets:
    return Targets(torch.tensor(scores, dtype=torch.float64), torch.tensor(groups or [[0, 0]] * len(scores)))


def test_cosent_counts_each_pair_of_rows_in_the_wrong_order() -> None:
    # Cosines 0.5, 0 and 1. The scores put row 0 above row 1 and below row 2, as the cosines do, and row 1 below row 2.
    embeddings = pairs(60, 90, 0)
    right = 1 + math.exp(20 * (0 - 0.5)) + math.exp(20 * (0.5 - 1)) + math.exp(20 * (0 - 1))
    assert float(cosent(embeddings, targets([0.5, 0.1, 0.9]))) == pytest.approx(math.log(right))
    wrong = 1 + math.exp(20 * (0.5 - 0)) + math.exp(20 * (1 - 0.5)) + math.exp(20 * (1 - 0))
    assert float(cosent(embeddings, targets([0.5, 0.9, 0.1]))) == pytest.approx(math.log(wrong))


def test_cosent_of_equal_scores_is_zero_and_has_a_gradient() -> None:
    embeddings = pairs(10, 50).requires_grad_()
    loss = cosent(embeddings, targets([0.4, 0.4]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_cosine_is_the_mean_squared_difference() -> None:
    assert float(cosine(pairs(60, 90), targets([1.0, 0.25]))) == pytest.approx((0.5**2 + 0.25**2) / 2)


def test_ranking_is_the_cross_entropy_of_the_positive() -> None:
    # Anchors at 0 and 90 degrees, positives at 60 and 90: cosines 0.5 and 0 of one, sqrt(3)/2 and 1 of the other.
    embeddings = torch.stack([turned(0, 90), turned(60, 90)], dim=1)
    first = -math.log(math.exp(10) / (math.exp(10) + math.exp(0)))
    second = -math.log(math.exp(20) / (math.exp(20) + math.exp(20 * math.sqrt(3) / 2)))
    found = float(ranking(embeddings, targets([0, 0], [[0, 1], [2, 3]])))
    assert found == pytest.approx((first + second) / 2)


def test_hard_negatives_are_candidates_of_every_anchor() -> None:
    embeddings = torch.stack([turned(0, 90), turned(60, 90), turned(90, 0)], dim=1)
    first = math.exp(10) / (math.exp(10) + math.exp(0) + math.exp(0) + math.exp(20))
    second = math.exp(20) / (math.exp(20) + math.exp(20 * math.sqrt(3) / 2) + math.exp(20) + math.exp(0))
    found = float(ranking(embeddings, targets([0, 0], [[0, 1, 4], [2, 3, 5]])))
    assert found == pytest.approx(-(math.log(first) + math.log(second)) / 2)


@pytest.mark.parametrize(
    "groups",
    [
        # The other positive equals the own one; the other positive equals the anchor; both rows have one anchor.
        [[0, 1], [2, 1]],
        [[0, 1], [1, 0]],
        [[0, 1], [0, 3]],
    ],
)
def test_equal_texts_are_no_negatives(groups: list[list[int]]) -> None:
    embeddings = torch.stack([turned(0, 10), turned(60, 90)], dim=1)
    assert float(ranking(embeddings, targets([0, 0], groups))) == 0
    assert float(ranking(embeddings, targets([0, 0], [[0, 1], [2, 3]]))) > 0


def test_symmetric_ranking_also_finds_the_anchor_of_each_positive() -> None:
    # The cosines of the first positive to the anchors are 0.5 and sqrt(3)/2, those of the second 0 and 1.
    embeddings = torch.stack([turned(0, 90), turned(60, 90)], dim=1)
    wanted = targets([0, 0], [[0, 1], [2, 3]])
    first = -math.log(math.exp(10) / (math.exp(10) + math.exp(20 * math.sqrt(3) / 2)))
    second = -math.log(math.exp(20) / (math.exp(20) + math.exp(0)))
    expected = (float(ranking(embeddings, wanted)) + (first + second) / 2) / 2
    assert float(symmetric_ranking(embeddings, wanted)) == pytest.approx(expected)
    # The reverse is the ranking of the pairs in the other order.
    swapped = (ranking(embeddings, wanted) + ranking(embeddings.flip(1), wanted)) / 2
    assert float(symmetric_ranking(embeddings, wanted)) == pytest.approx(float(swapped))


def test_hard_negatives_are_no_candidates_of_positives() -> None:
    embeddings = torch.stack([turned(0, 90), turned(60, 90), turned(90, 0)], dim=1)
    wanted = targets([0, 0], [[0, 1, 4], [2, 3, 5]])
    reverse = ranking(embeddings[:, :2].flip(1), targets([0, 0], [[1, 0], [3, 2]]))
    assert float(symmetric_ranking(embeddings, wanted)) == pytest.approx(
        float(ranking(embeddings, wanted) + reverse) / 2
    )


@pytest.mark.parametrize("groups", [[[0, 1], [2, 1]], [[0, 1], [1, 0]], [[0, 1], [0, 3]]])
def test_equal_texts_are_no_negatives_in_either_direction(groups: list[list[int]]) -> None:
    embeddings = torch.stack([turned(0, 10), turned(60, 90)], dim=1)
    assert float(symmetric_ranking(embeddings, targets([0, 0], groups))) == 0
    assert float(symmetric_ranking(embeddings, targets([0, 0], [[0, 1], [2, 3]]))) > 0


def test_only_the_rows_with_equal_texts_are_masked() -> None:
    # Rows 0 and 1 have one positive; row 2 is a negative of both, and both are of row 2.
    embeddings = functional.normalize(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    logits = 20 * embeddings[:, 0] @ embeddings[:, 1].T
    logits[0, 1] = logits[1, 0] = -torch.inf
    rows = torch.arange(3)
    expected = (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2
    found = symmetric_ranking(embeddings, targets([0, 0, 0], [[0, 1], [2, 1], [3, 4]]))
    assert float(found) == pytest.approx(float(expected))


def test_matryoshka_is_the_mean_over_cut_and_normalized_embeddings() -> None:
    embeddings = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    wanted = targets([0.1, 0.9, 0.3, 0.5, 0.7], [[2 * row, 2 * row + 1] for row in range(5)])
    for name, loss in LOSSES.items():
        parts = [loss(functional.normalize(embeddings[..., :count], dim=-1), wanted) for count in (8, 4, 2)]
        assert float(matryoshka(name, embeddings, wanted, (4, 2))) == pytest.approx(float(sum(parts)) / 3)
        assert float(matryoshka(name, 7 * embeddings, wanted, ())) == pytest.approx(float(parts[0]), rel=1e-5)

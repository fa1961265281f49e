from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from polyhead_training.loop.embedding_losses import LOSSES, Targets, matryoshka
from polyhead_training.loop.gradient_cache import cached_backward
from torch import Tensor, nn

INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
TARGETS = Targets(torch.tensor([0.1, 0.5, 0.9, 0.4]), INDEX)
PARTS = [[0, 4, 8, 1, 5], [9, 2, 6], [10, 3, 7, 11]]


def encoder(dropout: float) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_gradients_equal_those_of_one_graph(name: str, dropout: float) -> None:
    columns = 3 if "ranking" in name else 2

    def loss(embeddings: Tensor) -> Tensor:
        return matryoshka(name, embeddings[INDEX[:, :columns]], TARGETS, (4,))  # type: ignore[arg-type]

    whole = encoder(dropout)
    torch.manual_seed(7)
    order = [number for part in PARTS for number in part]
    embeddings = torch.cat([whole(INPUTS[part]) for part in PARTS])[torch.tensor(order).argsort()]
    expected = loss(embeddings)
    expected.backward()  # type: ignore[no-untyped-call]
    drawn = torch.rand(3)

    cached = encoder(dropout)
    torch.manual_seed(7)

    def embed(part: Sequence[int]) -> Tensor:
        return cached(INPUTS[list(part)])  # type: ignore[no-any-return]

    found = cached_backward(PARTS, (12, 8), embed, loss, Accelerator(cpu=True))
    assert float(found) == pytest.approx(expected.item(), abs=1e-6)
    assert gradients(cached) == pytest.approx(gradients(whole), abs=1e-5)
    assert gradients(whole).abs().max() > 1e-3
    # The random numbers of later steps do not depend on the way that the gradients were computed.
    assert torch.equal(torch.rand(3), drawn)


def test_gradients_of_other_dropout_differ() -> None:
    """The control of the test above: without the same dropout, the gradients would be others."""
    found = []
    for seed in (7, 8):
        model = encoder(0.5)
        torch.manual_seed(seed)
        cached_backward(
            PARTS,
            (12, 8),
            lambda part, model=model: model(INPUTS[list(part)]),  # type: ignore[misc]
            lambda embeddings: matryoshka("cosent", embeddings[INDEX[:, :2]], TARGETS, ()),
            Accelerator(cpu=True),
        )
        found.append(gradients(model))
    assert (found[0] - found[1]).abs().max() > 1e-3

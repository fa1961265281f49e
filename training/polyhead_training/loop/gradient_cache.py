"""Gradients of a loss over more texts than fit into memory at once, equal to those of a single forward pass.

GradCache (Gao et al., arXiv 2101.06983, section 3) embeds the texts part by part without a graph, computes the gradient
of the loss with respect to the embeddings, and runs the parts again, each with its part of that gradient::

    parts --embed, no graph--> embeddings --loss--> gradient of the embeddings --+
    parts --embed again, with the same dropout--> embeddings of one part --------+--> gradients of the weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

Part = Sequence[int]


def cached_backward(
    parts: Sequence[Part],
    size: tuple[int, int],
    embed: Callable[[Part], Tensor],
    loss: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
) -> Tensor:
    """Adds the gradients of a loss over all texts to those of the weights; returns the loss, without a graph.

    With several processes, each embeds every Nth part, and the sum of their gradients is that of the loss.

    Args:
        parts: Numbers of the texts of each forward pass; every process receives all of them.
        size: Number of texts and of dimensions.
        embed: Computes the float32 embeddings of a part, (B, E).
        loss: Computes the loss from the embeddings of all texts, (texts, E).
        accelerator: The processes, and the scale of gradients.
    """
    own = parts[accelerator.process_index :: accelerator.num_processes]
    embeddings = torch.zeros(size, device=accelerator.device)  # (texts, E)
    states = []
    with torch.no_grad():
        for part in own:
            states.append(_random_state(accelerator.device))
            embeddings[list(part)] = embed(part)
    # Each text is embedded by one process and is zero in the others.
    embeddings = accelerator.reduce(embeddings, "sum").requires_grad_()
    total = loss(embeddings)
    (gradient,) = torch.autograd.grad(total, embeddings)  # (texts, E)
    for part, state in zip(own, states, strict=True):
        with _replayed(state, accelerator.device):
            accelerator.backward((embed(part) * gradient[list(part)]).sum())
    return total.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draws the random numbers that followed a state again, then continues with the current state."""
    cpu, cuda = state
    with torch.random.fork_rng(devices=[] if cuda is None else [device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield

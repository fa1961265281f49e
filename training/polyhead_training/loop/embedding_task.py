"""The sentence embedding as a task of the training loop: its steps, and the gradient of each.

::

    EmbeddingSampler --EmbeddingStep--> texts of the step --one or two forward passes--> embeddings --loss--> gradients
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from polyhead_training.config import Config
from polyhead_training.data.embedding_encoding import EncodedEmbedding
from polyhead_training.data.embedding_sampling import EmbeddingSampler, EmbeddingStep
from polyhead_training.data.sampling import micro_batches
from polyhead_training.model import PolyheadModel

from .embedding_losses import Targets, matryoshka
from .gradient_cache import Part, cached_backward

# Characters of a text in an error message.
_MAX_SHOWN_CHARACTERS = 80


class EmbeddingLoss(NamedTuple):
    """The loss of a step.

    Attributes:
        source: Index of its source.
        loss: Mean loss of its rows, a scalar without a graph.
        weight: Weight of the source.
        lengths: Numbers of tokens of the texts of each forward pass.
    """

    source: int
    loss: Tensor
    weight: float
    lengths: list[list[int]]


class EmbeddingTask:
    """Computes the gradients of the steps that train the sentence embedding.

    A step of more rows than ``training.batch_size``, and a step of several processes, cache gradients; any other keeps
    the graph of its texts in memory.

    Args:
        config: Batch size, dimensions and seed.
        data: The texts.
        model: The model.
        accelerator: Device, mixed precision and processes.
        rows_per_step: Rows of a step of a source without a ``batch_size``.
    """

    def __init__(
        self, config: Config, data: EncodedEmbedding, model: PolyheadModel, accelerator: Accelerator, rows_per_step: int
    ) -> None:
        self._data = data
        self._model = model
        self._accelerator = accelerator
        self._batch_size = config.training.batch_size
        self._dimensions = config.training.matryoshka
        self.sampler = EmbeddingSampler(
            [len(source) for source in data.sources], config.data, rows_per_step, config.training.seed
        )

    @property
    def names(self) -> list[str]:
        """Names of the sources."""
        return [source.name for source in self._data.sources]

    def backward(self, step: EmbeddingStep) -> EmbeddingLoss:
        """Adds the gradients of a step to those of the weights; with several processes, this process's share."""
        source = self._data.sources[step.source]
        rows, weight = list(step.rows), source.config.weight
        device, objective = self._accelerator.device, source.config.objective
        numbers, inverse = np.unique(source.texts[rows], return_inverse=True)  # (texts,)
        index = torch.from_numpy(inverse.reshape(source.texts[rows].shape)).to(device)  # (R, C)
        targets = Targets(
            torch.from_numpy(source.scores[rows]).to(device), torch.from_numpy(source.groups[rows]).to(device)
        )

        def loss(embeddings: Tensor) -> Tensor:
            # Unlike indexing, it sums the gradients of a text that occurs several times in a fixed order.
            chosen = functional.embedding(index, embeddings)  # (R, C, E)
            return weight * matryoshka(objective, chosen, targets, self._dimensions)

        def embed(part: Part) -> Tensor:
            return self._embed(numbers[list(part)])

        order = sorted(range(len(numbers)), key=lambda one: len(self._data.texts.ids[numbers[one]]), reverse=True)
        parts = micro_batches(order, self._batch_size)
        if len(rows) <= self._batch_size and self._accelerator.num_processes == 1:
            embeddings = torch.cat([embed(part) for part in parts])[np.argsort(order)]  # (texts, E)
            total = loss(embeddings)
            self._accelerator.backward(total)
        else:
            size = len(numbers), self._model.config.embedding_size()
            total = cached_backward(parts, size, embed, loss, self._accelerator)
        lengths = [[len(self._data.texts.ids[numbers[one]]) for one in part] for part in parts]
        return EmbeddingLoss(step.source, total.detach() / weight, weight, lengths)

    def diverging_rows(self, step: EmbeddingStep) -> list[str]:
        """Returns the location and texts of the rows of a step whose own embeddings are not finite."""
        source = self._data.sources[step.source]
        found = []
        for row in step.rows:
            with torch.no_grad():
                embeddings = self._embed(source.texts[row])  # (C, E)
            if not torch.isfinite(embeddings).all():
                one = source.rows[row]
                texts = " | ".join(text[:_MAX_SHOWN_CHARACTERS] for text in one.texts)
                found.append(f"{one.location}: {texts!r}")
        return found

    def _embed(self, numbers: NDArray[np.int64] | Sequence[int]) -> Tensor:
        """Computes the embeddings of the texts with these numbers, (B, E) float32."""
        batch = self._data.texts.batch([int(number) for number in numbers], self._accelerator.device)
        with self._accelerator.autocast():
            embedding: Tensor = self._model(batch.input_ids, batch.attention_mask).sentence_embedding
        return embedding.float()

"""Order of the embedding's training texts: which rows of which source each step trains on.

As with labelled rows, the order is a function of the seed and the epoch's number alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from polyhead_training.config import DataConfig

from .sampling import draw, epoch_counts


@dataclass(frozen=True)
class EmbeddingStep:
    """The rows of one optimizer step, over all processes.

    Attributes:
        source: Index of their source.
        rows: Their numbers in it.
    """

    source: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class EmbeddingSampler:
    """Assigns the rows of the sources to the steps of an epoch.

    Attributes:
        sizes: Number of rows of each source.
        config: The sampling rule, and the rows per step of each source.
        rows_per_step: Rows per step of a source without a ``batch_size``.
        seed: Seed of every random choice.
    """

    sizes: Sequence[int]
    config: DataConfig
    rows_per_step: int
    seed: int

    def epoch(self, number: int) -> list[EmbeddingStep]:
        """Returns the steps of an epoch in random order; a step has rows of one source alone.

        The rows of a source are divided evenly, as a step of few rows would have few texts to compare.

        Args:
            number: Number of the epoch in the run, counted from 0.
        """
        steps = []
        for source, count in epoch_counts(self.config, dict(enumerate(self.sizes))).items():
            rows = draw(f"{self.seed}/embedding/{source}", range(self.sizes[source]), number * count, count)
            size = max(2, self.config.embedding[source].batch_size or self.rows_per_step)
            parts = math.ceil(count / size)
            bounds = [count * part // parts for part in range(parts + 1)] if parts else []
            steps += [EmbeddingStep(source, tuple(rows[first:last])) for first, last in pairwise(bounds)]
        random.Random(f"{self.seed}/embedding/{number}").shuffle(steps)  # noqa: S311
        return steps


def interleave(
    labelled: Sequence[list[int]], embedding: Sequence[EmbeddingStep], seed: int, epoch: int
) -> list[list[int] | EmbeddingStep]:
    """Merges the steps of both kinds at random; each kind keeps its order."""
    kinds = [True] * len(labelled) + [False] * len(embedding)
    random.Random(f"{seed}/tasks/{epoch}").shuffle(kinds)  # noqa: S311
    rows, texts = iter(labelled), iter(embedding)
    return [next(rows) if is_labelled else next(texts) for is_labelled in kinds]

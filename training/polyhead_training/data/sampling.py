"""Order of the training rows: which rows each step trains on.

The order is a function of the seed and the epoch's number alone, so a resumed run and a run on another number of
processes train on the same rows in the same steps.

::

    rows of each source in data.train --sampling--> rows of an epoch --sorted windows--> steps --> micro-batches
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead_training.config import DataConfig

# Steps that are sorted by length together. A larger window wastes less padding; a smaller one mixes the rows better.
_WINDOW_STEPS = 32


@dataclass(frozen=True)
class Sampler:
    """Assigns rows to the steps of an epoch.

    Attributes:
        sources: For each row, the index of its source in ``data.train``.
        lengths: For each row, its number of tokens.
        labelled: For each row, a number that is equal for rows with labels for the same heads.
        config: The sampling rule.
        rows_per_step: Rows in a step, over all micro-batches and processes.
        seed: Seed of every random choice.
    """

    sources: Sequence[int]
    lengths: Sequence[int]
    labelled: Sequence[int]
    config: DataConfig
    rows_per_step: int
    seed: int

    def epoch(self, number: int) -> list[list[int]]:
        """Returns the rows of each step of an epoch, the longest rows of a step first.

        Rows of a step have similar lengths, which reduces padding, and labels for the same heads where possible: a
        single row with a label for a head would weigh as much in that head's mean loss as a full step does elsewhere.

        Args:
            number: Number of the epoch in the run, counted from 0.
        """
        rng = random.Random(f"{self.seed}/{number}")  # noqa: S311
        order = self._rows(number, rng)
        steps: list[list[int]] = []
        size = self.rows_per_step
        for start in range(0, len(order), size * _WINDOW_STEPS):
            window = sorted(order[start : start + size * _WINDOW_STEPS], key=self._sort_key, reverse=True)
            steps += [window[first : first + size] for first in range(0, len(window), size)]
        rng.shuffle(steps)
        return steps

    def _rows(self, number: int, rng: random.Random) -> list[int]:
        groups: dict[int, list[int]] = defaultdict(list)
        for row, source in enumerate(self.sources):
            groups[source].append(row)
        counts = epoch_counts(self.config, {source: len(rows) for source, rows in groups.items()})
        drawn = [
            draw(f"{self.seed}/{source}", groups[source], number * count, count) for source, count in counts.items()
        ]
        order = [row for rows in drawn for row in rows]
        rng.shuffle(order)
        return order

    def _sort_key(self, row: int) -> tuple[int, int]:
        return self.labelled[row], self.lengths[row]


def draw(seed: str, rows: Sequence[int], start: int, count: int) -> list[int]:
    """Returns ``count`` rows from position ``start`` of an endless series of shuffles of ``rows``."""
    drawn: list[int] = []
    while len(drawn) < count:
        shuffle, position = divmod(start + len(drawn), len(rows))
        shuffled = random.Random(f"{seed}/{shuffle}").sample(rows, len(rows))  # noqa: S311
        drawn += shuffled[position : position + count - len(drawn)]
    return drawn


def epoch_counts(config: DataConfig, sizes: dict[int, int]) -> dict[int, int]:
    """Returns the rows per epoch of each source. The total equals the total number of rows.

    Args:
        config: The sampling rule. Temperature sampling draws a source of n rows in proportion to n ** (1 / temperature)
            (Arivazhagan et al., arXiv 1907.05019, section 4.1).
        sizes: Number of rows of each source.
    """
    if config.sampling == "proportional" or not sizes:
        return dict(sizes)
    power = 0.0 if config.sampling == "round_robin" else 1.0 / config.sampling_temperature
    weights = {source: size**power for source, size in sizes.items()}
    total, weight_sum = sum(sizes.values()), sum(weights.values())
    exact = {source: total * weight / weight_sum for source, weight in weights.items()}
    counts = {source: int(count) for source, count in exact.items()}
    # Largest remainders receive the rows that rounding down left over.
    left = total - sum(counts.values())
    for source in sorted(exact, key=lambda source: counts[source] - exact[source])[:left]:
        counts[source] += 1
    return counts


def micro_batches(step: Sequence[int], batch_size: int) -> list[list[int]]:
    """Splits the rows of a step into micro-batches, the rows of one forward pass each, in order."""
    return [list(step[start : start + batch_size]) for start in range(0, len(step), batch_size)]

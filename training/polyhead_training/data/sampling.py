"""Which rows a step takes.

It is a function of the seed and the epoch's number alone, so that a run that is resumed, or spread over other
processes, sees the same rows in the same steps.

::

    rows of each entry of data.train --sampling--> rows of an epoch --windows sorted--> steps --> passes
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead_training.config import DataConfig

# Steps that are sorted together: more pad less, fewer mix the rows better.
_WINDOW = 32


@dataclass(frozen=True)
class Sampler:
    """Deals rows out to steps.

    Attributes:
        entries: For each row, the entry of data.train that it came from.
        lengths: For each row, its number of tokens.
        labelled: For each row, a number that is the same for rows with labels for the same heads.
        config: How often the rows of each entry come.
        rows_per_step: Rows of a step, over all passes and processes.
        seed: Seed of every choice.
    """

    entries: Sequence[int]
    lengths: Sequence[int]
    labelled: Sequence[int]
    config: DataConfig
    rows_per_step: int
    seed: int

    def epoch(self, number: int) -> list[list[int]]:
        """The rows of each step of an epoch, the longest rows of a step first.

        A step's rows have like lengths, so that little is padded, and labels for the same heads as far as that goes: a
        lone row with a label for a head would weigh as much in the head's mean as a whole step does elsewhere.

        Args:
            number: Number of the epoch in the run, counted from 0.
        """
        chooser = random.Random(f"{self.seed}/{number}")  # noqa: S311
        order = self._rows(number, chooser)
        steps: list[list[int]] = []
        size = self.rows_per_step
        for start in range(0, len(order), size * _WINDOW):
            window = sorted(order[start : start + size * _WINDOW], key=self._place, reverse=True)
            steps += [window[place : place + size] for place in range(0, len(window), size)]
        chooser.shuffle(steps)
        return steps

    def _rows(self, number: int, chooser: random.Random) -> list[int]:
        groups: dict[int, list[int]] = defaultdict(list)
        for row, entry in enumerate(self.entries):
            groups[entry].append(row)
        drawn = {
            entry: self._draw(entry, groups[entry], number * count, count)
            for entry, count in epoch_counts(self.config, {entry: len(rows) for entry, rows in groups.items()}).items()
        }
        order = [row for rows in drawn.values() for row in rows]
        chooser.shuffle(order)
        return order

    def _place(self, row: int) -> tuple[int, int]:
        return self.labelled[row], self.lengths[row]

    def _draw(self, entry: int, rows: Sequence[int], start: int, count: int) -> list[int]:
        """``count`` rows from place ``start`` of an endless series of shuffles of ``rows``."""
        drawn: list[int] = []
        while len(drawn) < count:
            turn, place = divmod(start + len(drawn), len(rows))
            shuffled = random.Random(f"{self.seed}/{entry}/{turn}").sample(rows, len(rows))  # noqa: S311
            drawn += shuffled[place : place + count - len(drawn)]
        return drawn


def epoch_counts(config: DataConfig, sizes: dict[int, int]) -> dict[int, int]:
    """Rows of an epoch by entry; together as many as there are rows.

    Args:
        config: The sampling; temperature sampling takes an entry of n rows in proportion to n ** (1 / temperature)
            (Arivazhagan et al., arXiv 1907.05019, section 4.1).
        sizes: Rows by entry.
    """
    if config.sampling == "proportional":
        return dict(sizes)
    power = 0.0 if config.sampling == "round_robin" else 1.0 / config.sampling_temperature
    shares = {entry: size**power for entry, size in sizes.items()}
    total, whole = sum(sizes.values()), sum(shares.values())
    exact = {entry: total * share / whole for entry, share in shares.items()}
    counts = {entry: int(count) for entry, count in exact.items()}
    # The rows that rounding left over go to the largest remainders.
    left = total - sum(counts.values())
    for entry in sorted(exact, key=lambda entry: counts[entry] - exact[entry])[:left]:
        counts[entry] += 1
    return counts


def passes(step: Sequence[int], batch_size: int) -> list[list[int]]:
    """A step's rows in the groups that go through the model together, by length."""
    return [list(step[place : place + batch_size]) for place in range(0, len(step), batch_size)]

"""Successive halving: every trial trains on few rows, the best ones again on more, until a few train on all.

::

    rung 1: 12 trials, 1/9 of the rows --best 4--> rung 2: 1/3 of the rows --best 2--> rung 3: all rows --> the best

Each rung trains complete runs, with every stage and the whole learning-rate schedule, so that their scores compare
(Jamieson and Talwalkar, arXiv 1502.07943, with the share of the rows as the budget).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Plan:
    """Sizes of the rungs of a sweep.

    Attributes:
        trials: Trials of the first rung.
        rungs: Number of rungs.
        reduction: Factor by which each rung has fewer trials, and more rows, than the one before.
    """

    trials: int
    rungs: int
    reduction: int

    def share(self, rung: int) -> float:
        """Returns the share of the training rows that a rung, counted from 0, trains on."""
        return float(self.reduction) ** (rung + 1 - self.rungs)

    def count(self, rung: int) -> int:
        """Returns the number of trials of a rung, counted from 0."""
        return math.ceil(self.trials / float(self.reduction) ** rung)


def subset(rows: Sequence[_Item], share: float, seed: int) -> tuple[_Item, ...]:
    """Returns a random share of the rows, in their order; that of a larger share contains that of a smaller one."""
    if share >= 1.0:
        return tuple(rows)
    order = random.Random(seed).sample(range(len(rows)), len(rows))  # noqa: S311
    return tuple(rows[number] for number in sorted(order[: math.ceil(share * len(rows))]))

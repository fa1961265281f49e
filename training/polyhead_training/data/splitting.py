"""Random, stratified splits of the rows."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from .targets import target_labels

if TYPE_CHECKING:
    from .dataset import Row

# Ranges of a regression head's numbers with about as many rows each, that count as labels when rows are split.
_RANGES = 10


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits rows into two parts, stratified by the combination of answers.

    The second part never takes the last row of a label: a label that occurs once stays in the first part.

    Args:
        rows: The rows.
        fraction: Share of the second part, 0 to 1.
        seed: Seed of the random choice.

    Returns:
        The first and the second part, each in the order of ``rows``.
    """
    strata: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata_of(rows)):
        strata[stratum].append(index)
    rng = random.Random(seed)  # noqa: S311
    order = [index for stratum in strata.values() for index in rng.sample(stratum, len(stratum))]
    # Taking every 1/fraction-th row of an order by strata comes as close to the fraction in each as whole rows allow.
    wanted = [row for n, row in enumerate(order) if math.floor((n + 1) * fraction) > math.floor(n * fraction)]
    named = [[(column, label) for column, one in enumerate(row.labels) for label in target_labels(one)] for row in rows]
    left = Counter(label for labels in named for label in labels)
    taken = set()
    for index in wanted:
        if all(left[label] > 1 for label in named[index]):
            left.subtract(named[index])
            taken.add(index)
    return (
        [row for index, row in enumerate(rows) if index not in taken],
        [row for index, row in enumerate(rows) if index in taken],
    )


def strata_of(rows: Sequence[Row]) -> list[Hashable]:
    """Returns a key for each row; rows with equal keys have similar answers for every head.

    A label stands for itself, a list of labels for the rarest of them, a number for one of ten ranges of equal size.
    """
    columns: list[list[Hashable]] = []
    for column in range(len(rows[0].labels) if rows else 0):
        targets = [row.labels[column] for row in rows]
        counts = Counter(label for target in targets for label in target_labels(target))
        numbers = sorted(target for target in targets if isinstance(target, float))
        limits = [numbers[len(numbers) * part // _RANGES] for part in range(1, _RANGES)] if numbers else []
        columns.append(
            [
                bisect_right(limits, target)
                if isinstance(target, float)
                else min(target, key=lambda label: (counts[label], label), default="")
                if isinstance(target, tuple)
                else target
                for target in targets
            ]
        )
    return list(zip(*columns, strict=True))

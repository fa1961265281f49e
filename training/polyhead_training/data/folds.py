"""Folds of a cross-validation: rows with equal labels are spread evenly, duplicate texts stay together."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

from polyhead_training.model_config import HeadConfig

from .dataset import Row
from .splitting import strata_of
from .targets import target_labels


def assign_folds(sets: Sequence[int], rows: Sequence[Row], folds: int, seed: int) -> list[int]:
    """Assigns each row to a fold, counted from 0.

    Args:
        sets: For each row, the number of its set of duplicates, from ``duplicate_sets``.
        rows: The rows.
        folds: Number of folds, at most the number of sets.
        seed: Seed of the random choice.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for number, found in enumerate(sets):
        members[found].append(number)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    found_strata = strata_of(rows)
    for numbers in members.values():
        strata[found_strata[numbers[0]]].append(numbers)
    rng = random.Random(f"folds/{seed}")  # noqa: S311
    assigned = [0] * len(rows)
    sizes = [0] * folds
    for stratum in strata.values():
        rng.shuffle(stratum)
        held = [0] * folds
        # The largest sets first: the others even them out.
        for numbers in sorted(stratum, key=len, reverse=True):
            fold = min(range(folds), key=lambda fold: (held[fold], sizes[fold]))
            held[fold] += len(numbers)
            sizes[fold] += len(numbers)
            for number in numbers:
                assigned[number] = fold
    return assigned


def fold_warnings(sets: Sequence[int], rows: Sequence[Row], heads: Sequence[HeadConfig], folds: int) -> Iterator[str]:
    """Yields a sentence for each head and label that folds cannot measure, or only some of them.

    Args:
        sets: For each row, the number of its set of duplicates.
        rows: The rows.
        heads: The heads, in the order of the rows' labels.
        folds: Number of folds.
    """
    for column, head in enumerate(heads):
        labels = ((found, target_labels(row.labels[column])) for found, row in zip(sets, rows, strict=True))
        counts = Counter(label for _, label in {(found, label) for found, some in labels for label in some})
        if len(counts) == 1:
            (label,) = counts
            yield f"head {head.name!r}: every labelled row has the label {label!r}, so its scores mean nothing"
        for label in sorted(counts):
            if counts[label] == 1:
                yield (
                    f"head {head.name!r}: label {label!r} has a single text; the models that are tested on it were "
                    "trained without the label, so it counts as an error, and the label-noise report leaves it out"
                )
            elif counts[label] < folds:
                yield (
                    f"head {head.name!r}: label {label!r} has {counts[label]} different texts, fewer than {folds} "
                    f"folds; {folds - counts[label]} of the folds do not measure it"
                )


def require_sets(sets: Sequence[int], folds: int) -> str | None:
    """Returns why there cannot be so many folds; None if there can."""
    found = len(set(sets))
    if found >= folds:
        return None
    fix = f"choose at most {found}, or add rows" if found > 1 else "add rows"
    return f"{folds} folds require as many different texts, and train has {found}; {fix}"

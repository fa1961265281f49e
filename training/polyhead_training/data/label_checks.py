"""Checks of the labels that occur in the rows, for labels that are likely mistakes.

Each function returns the labels that it finds; ``quality_report`` turns them into warnings.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile

from polyhead_training.suggestions import folded

# Spellings of a missing value that CSV files carry, folded. "NA" alone may be a region or an element.
_MISSING = frozenset(
    {"", "-", "--", "?", "#n/a", "<na>", "\\n", "(null)", "[null]", "n/a", "nan", "nil", "none", "null"}
)
_MISSING_OR_LABEL = frozenset({"na"})
# Shorter labels differ by one character from many others.
_MIN_EDITED_CHARACTERS = 4


def spelled_missing(labels: Iterable[str]) -> list[str]:
    """Returns the labels that spell a missing value, such as ``NaN`` and ``NULL``."""
    names = list(labels)
    found = [label for label in names if folded(label) in _MISSING]
    # Beside other spellings of a missing value, NA is one too.
    return [label for label in names if label in found or (found and folded(label) in _MISSING_OR_LABEL)]


def equal_when_folded(labels: Iterable[str]) -> list[list[str]]:
    """Groups labels that differ only in case, spaces, invisible characters or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[folded(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def one_edit_apart(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs labels that differ by one letter: inserted, deleted, replaced, or swapped with its neighbor.

    Differences in digits are meant: ``class 1`` and ``class 2``, ``v1.0`` and ``v1.1``.
    """
    names = sorted({folded(label): label for label in labels}.items())
    # Two words one edit apart have a common word after at most one deletion from each (Garbe's symmetric deletion).
    buckets: dict[str, list[int]] = defaultdict(list)
    for number, (name, _) in enumerate(names):
        for key in {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}:
            buckets[key].append(number)
    pairs = {(a, b) for numbers in buckets.values() for i, a in enumerate(numbers) for b in numbers[i + 1 :]}
    return [(names[a][1], names[b][1]) for a, b in sorted(pairs) if _is_misspelling(names[a][0], names[b][0])]


def _is_misspelling(first: str, second: str) -> bool:
    if max(len(first), len(second)) < _MIN_EDITED_CHARACTERS:
        return False
    start = _common(first, second)
    end = _common(reversed(first[start:]), reversed(second[start:]))
    removed, added = first[start : len(first) - end], second[start : len(second) - end]
    is_edit = max(len(removed), len(added)) == 1 or (len(removed) == len(added) == 2 and removed == added[::-1])
    return is_edit and all(character.isalpha() or character in " -_'" for character in removed + added)


def _common(first: Iterable[str], second: Iterable[str]) -> int:
    """Returns the length of the common start."""
    return sum(takewhile(bool, map(operator.eq, first, second)))

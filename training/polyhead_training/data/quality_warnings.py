"""Warnings of the data quality report: likely faults of the rows, a sentence each."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import closest

from .dataset import Data, Row
from .label_checks import equal_when_folded, one_edit_apart, spelled_missing
from .targets import other_separator, target_labels

if TYPE_CHECKING:
    from .quality_report import HeadCounts, Leak, SplitReport

# Examples in one warning: enough to show a pattern, few enough to read.
MAX_EXAMPLES = 5
# Share of truncated texts above which the report warns.
MAX_TRUNCATED = 0.1
# Rows of a split, or of a source of the embedding, below which the report warns.
MIN_ROWS = 30
# Mean of numbers, in standard deviations, above which the report warns: a float32 has 7 digits, and the export allows
# values to differ by 1e-5 standard deviations.
_MAX_OFFSET = 200

Warnings = Iterator[str]


class Located(Protocol):
    """A row of a file."""

    @property
    def location(self) -> str:
        """File and line."""


def misspelled_fields(data: Data) -> Warnings:
    """Warns of files without a head's field but with a field of a similar name."""
    for source, fields in data.fields.items():
        for head in data.heads:
            rest = [field for field in fields if field not in {other.field for other in data.heads}]
            close = closest(head.field, rest)
            if head.field not in fields and close is not None:
                yield f"{source}: has no field {head.field!r} for head {head.name!r}; did you mean {close!r}?"


def empty_splits(data: Data) -> Warnings:
    """Warns of splits, and of files of other splits, without rows."""
    effects = {
        "validation": "no epoch is selected, and no temperature or threshold is fitted; set data.validation",
        "test": "nothing is evaluated on it",
        "similarity": "the embedding is not evaluated on it",
    }
    for split in data.empty:
        yield f"{split}: has no rows, so {effects[split]}"
    for source, fields in data.fields.items():
        if not fields:
            yield f"{source}: has no rows"


def similarity_warnings(data: Data) -> Warnings:
    """Warns of text pairs whose correlation with their scores is undefined."""
    scores = {pair.score for pair in data.similarity}
    if len(scores) == 1:
        found = "the score of every pair is" if len(data.similarity) > 1 else "has a single pair, with the score"
        reason = "so its correlation with the cosines is undefined; add pairs with other scores"
        yield f"similarity: {found} {scores.pop():g}, {reason}"


def spelling_warnings(head: HeadConfig, rows: Sequence[Row], column: int) -> Warnings:
    """Warns of labels that are likely spellings of another label, or of a missing one."""
    counts = label_counts(rows, column)
    first = {label: row for row in reversed(rows) for label in target_labels(row.labels[column])}

    def show(label: str) -> str:
        return f"{label!r} ({counts[label]:,}, first in {first[label].location})"

    labels = [label for label in head.labels or () if counts[label]]
    if missing := spelled_missing(labels):
        names = ", ".join(map(show, missing))
        yield f"head {head.name!r}: labels that spell a missing value: {names}; leave the field empty for no label"
    for group in equal_when_folded(label for label in labels if label not in missing):
        names = ", ".join(map(show, group))
        yield f"head {head.name!r}: labels that differ only in case, spaces or invisible characters: {names}"
    lists = [(label, separator) for label in labels if (separator := other_separator(head, label, counts))]
    if lists:
        names = summary((show(label) for label, _ in lists), len(lists))
        fix = f"set separator = {json.dumps(lists[0][1])} if they are"
        yield f"head {head.name!r}: labels that look like lists of labels: {names}; {fix}"
    pairs = [" and ".join(map(show, pair)) for pair in one_edit_apart(labels) if not set(pair) & set(missing)]
    if pairs:
        yield f"head {head.name!r}: labels that differ by one letter, perhaps misspelled: {summary(pairs, len(pairs))}"


def single_rows(head: HeadConfig, train: Sequence[Row], column: int) -> Warnings:
    """Warns of labels with a single training row, but for those that spell a missing value."""
    counts = label_counts(train, column)
    missing = spelled_missing(head.labels or ())
    single = [
        f"{label!r} ({row.location})"
        for row in train
        for label in target_labels(row.labels[column])
        if label not in missing and counts[label] == 1
    ]
    if single:
        found = f"labels of head {head.name!r} with one row, too few to learn: {summary(single, len(single))}"
        yield f"train: {found}; add rows, or merge them with other labels"


def split_warnings(split: str, rows: Sequence[Row], repeats: Sequence[Sequence[int]], report: SplitReport) -> Warnings:
    """Warns of few rows, rows without labels, repeated texts, labels without rows, and truncation in a split.

    Args:
        split: Name of the split.
        rows: Its rows.
        repeats: Numbers of the rows with equal texts, a group each.
        report: Its statistics.
    """
    if split == "train" and 0 < len(rows) < MIN_ROWS:
        yield f"train: has only {len(rows)} rows; the model is unlikely to be reliable"
    elif 0 < len(rows) < MIN_ROWS:
        # 95 % confidence interval of an accuracy of 0.5, the widest one.
        margin = min(0.5, 1.96 * math.sqrt(0.25 / len(rows)))
        yield f"{split}: has only {len(rows)} rows; an accuracy on them is uncertain by up to {margin:.0%}"
    if unlabelled := list(filter(is_unlabelled, rows)):
        where = summary((row.location for row in unlabelled), len(unlabelled))
        yield f"{split}: rows without a label for any head: {where}"
    pairs = [(rows[numbers[0]], rows[number]) for numbers in repeats for number in numbers[1:]]
    for kind, found in (
        ("with a different label", [pair for pair in pairs if conflict(*pair)]),
        ("with the same label", [pair for pair in pairs if not conflict(*pair)]),
    ):
        if found:
            yield f"{split}: rows that repeat a text {kind}: {pair_summary(found)}"
    for name, head in report.heads.items():
        if rows and not head.labelled:
            effect = {"validation": ", so it selects no epoch, and no temperature or threshold is fitted"}.get(
                split, ""
            )
            yield f"{split}: no row has an answer for head {name!r}, which is not measured there{effect}"
        missing = [label for label, count in head.labels.items() if not count]
        if head.labelled and missing:
            noun = "label" if len(missing) == 1 else "labels"
            yield f"{split}: no rows with the {noun} {', '.join(map(repr, missing))} of head {name!r}"
    if report.tokens and report.tokens.truncated > MAX_TRUNCATED:
        yield f"{split}: {report.tokens.truncated:.0%} of the texts are truncated; consider a higher model.max_tokens"


def offset_warnings(head: HeadCounts) -> Warnings:
    """Warns of numbers that are far from 0 for their spread."""
    if head.numbers and abs(head.numbers["mean"]) > _MAX_OFFSET * head.numbers["spread"]:
        found = "mean {mean:.6g}, standard deviation only {spread:.3g}".format(**head.numbers)
        effect = "float32 rounds the answers coarsely for that, which may fail the gate of the export"
        yield f"{found}: {effect}; subtract a constant from all numbers"


def leak_warnings(leak: Leak) -> Warnings:
    """Warns of rows that occur in two splits."""
    if leak.exact or leak.near:
        earlier, later = leak.splits
        counts = f"{leak.exact:,} exact, {leak.near:,} near duplicates"
        examples = "; ".join(f"{first} = {second}" for first, second in leak.examples)
        yield f"{later}: rows that also occur in {earlier} inflate the scores: {counts}: {examples}"


def label_counts(rows: Iterable[Row], column: int) -> Counter[str]:
    """Counts the labels of a head, given by its column."""
    return Counter(label for row in rows for label in target_labels(row.labels[column]))


def is_unlabelled(row: Row) -> bool:
    """Returns whether a row has no label for any head."""
    return all(answer is None for answer in row.labels)


def conflict(first: Row, other: Row) -> bool:
    """Returns whether two rows have different labels for a head."""
    return any(a is not None and b is not None and a != b for a, b in zip(first.labels, other.labels, strict=True))


def summary(locations: Iterable[str], count: int) -> str:
    """Formats a count and the first locations."""
    return f"{count:,}: {'; '.join(islice(locations, MAX_EXAMPLES))}{'; ...' if count > MAX_EXAMPLES else ''}"


def pair_summary(pairs: Sequence[tuple[Located, Located]]) -> str:
    """Formats the number of pairs of rows and the first of them."""
    return summary((f"{one.location} = {other.location}" for one, other in pairs), len(pairs))

"""Data quality report: statistics and warnings about the rows, before training starts.

::

    Data, numbers of tokens --describe_data--> DataReport --> terminal, data.json, report.html
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import bare, closest
from polyhead_training.terminal import format_table

from .dataset import Data, Row
from .duplicates import exact_pairs, groups, near_pairs, normalize, signatures
from .label_checks import equal_when_folded, one_edit_apart, spelled_missing
from .targets import target_labels

if TYPE_CHECKING:
    from .collected import CollectedRows
    from .embedding_report import SourceReport

# Examples in one warning: enough to show a pattern, few enough to read.
_MAX_EXAMPLES = 5
# Share of truncated texts above which the report warns.
_MAX_TRUNCATED = 0.1
# Rows of a split below which the report warns.
_MIN_ROWS = 30
# Mean of numbers, in standard deviations, above which the report warns: a float32 has 7 digits, and the export allows
# values to differ by 1e-5 standard deviations.
_MAX_OFFSET = 200

Warnings = Iterator[str]


@dataclass(frozen=True)
class HeadCounts:
    """Label counts of one head in one split.

    Attributes:
        labelled: Rows with an answer: a label, a list of labels, which may be empty, or a number.
        majority_baseline: Share of the most frequent label among them, 0 to 1; None without labelled rows, and for
            heads that do not predict exactly one label.
        labels: Number of rows with each label, in the order of the logits.
        numbers: Distribution of the numbers of a regression head: minimum, median, maximum, mean and standard
            deviation; None for other heads.
    """

    labelled: int
    majority_baseline: float | None
    labels: dict[str, int]
    numbers: dict[str, float] | None = None


@dataclass(frozen=True)
class TokenCounts:
    """Text lengths of a split in tokens, special tokens included, before truncation.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        max: Maximum.
        truncated: Share of the texts that are truncated, 0 to 1.
        lost: Share of the tokens that truncation removes, 0 to 1.
    """

    p50: int
    p95: int
    max: int
    truncated: float
    lost: float


@dataclass(frozen=True)
class SplitReport:
    """Statistics of one split.

    Attributes:
        rows: Number of rows.
        unlabelled: Rows without any label.
        heads: Label counts by head name.
        tokens: Text lengths; None without rows.
        duplicates: Rows that repeat the text of an earlier row, ignoring case, accents and punctuation: ``exact``
            counts all of them, ``conflicting`` those whose labels differ from the first row's.
    """

    rows: int
    unlabelled: int
    heads: dict[str, HeadCounts]
    tokens: TokenCounts | None
    duplicates: dict[str, int]


@dataclass(frozen=True)
class Leak:
    """Rows of a later split whose text also occurs in an earlier split.

    Attributes:
        splits: The two splits.
        exact: Rows with an equal text, ignoring case, accents and punctuation.
        near: Other rows that share at least 80 % of their 5-grams with a row of the earlier split.
        examples: Locations of some pairs, the row of the earlier split first.
    """

    splits: tuple[str, str]
    exact: int
    near: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class DataReport:
    """Statistics and warnings about the rows.

    Attributes:
        splits: Statistics by split: train, validation, test.
        leakage: One element for each two splits with rows.
        warnings: Likely faults, a sentence each; none of them prevents training.
        embedding: Statistics of the sources that train the sentence embedding.
        collected: The rows that a server has collected; None without any.
    """

    splits: dict[str, SplitReport]
    leakage: list[Leak]
    warnings: list[str]
    embedding: Sequence[SourceReport] = ()
    collected: CollectedRows | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``data.json``; it has no key for what the run does not have."""
        content = asdict(replace(self, collected=None)) | {"collected": self.collected and self.collected.to_json()}
        return {key: value for key, value in content.items() if value or key not in {"collected", "embedding"}}

    def lines(self) -> Iterator[str]:
        """Yields the report as lines for a terminal."""
        rows = [
            [split, name, f"{found.rows:,}", f"{head.labelled:,}", _shares(head)]
            for split, found in self.splits.items()
            for name, head in (found.heads.items() if found.rows else ())
        ]
        if rows:
            yield format_table(["split", "head", "rows", "labelled", "labels"], rows, numeric=["rows", "labelled"])
        for split, found in self.splits.items():
            if found.tokens:
                loss = (
                    f"{found.tokens.truncated:.1%} of the texts truncated, {found.tokens.lost:.1%} of the tokens lost"
                )
                yield f"{split}: median {found.tokens.p50} tokens, maximum {found.tokens.max}; {loss}"
        yield from (source.line() for source in self.embedding)
        if self.collected:
            yield self.collected.line()
        for warning in self.warnings:
            yield f"warning: {warning}"


def describe_data(data: Data, tokens: Mapping[str, Sequence[int]], max_tokens: int) -> DataReport:
    """Computes the data quality report.

    Args:
        data: The rows.
        tokens: By split, the number of tokens of each row before truncation.
        max_tokens: Token limit of the model.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    normalized = {split: [normalize(row.text) for row in rows] for split, rows in splits.items()}
    warnings = [*_misspelled_fields(data), *_empty_splits(data)]
    for column, head in enumerate(data.heads):
        warnings += _label_warnings(head, [row for rows in splits.values() for row in rows], column)
        warnings += _single_rows(head, data.train, column)
    reports = {}
    for split, rows in splits.items():
        repeats = groups(normalized[split])
        conflicting = sum(_conflict(rows[numbers[0]], rows[n]) for numbers in repeats for n in numbers[1:])
        reports[split] = SplitReport(
            rows=len(rows),
            unlabelled=sum(map(_is_unlabelled, rows)),
            heads={head.name: _count(rows, column, head) for column, head in enumerate(data.heads)},
            tokens=token_counts(np.array(tokens[split]), max_tokens) if rows else None,
            duplicates={"exact": sum(len(numbers) - 1 for numbers in repeats), "conflicting": conflicting},
        )
        warnings += _split_warnings(split, rows, repeats, reports[split])
    warnings += [f"head {name!r}: {reason}" for name, one in reports["train"].heads.items() for reason in _offset(one)]
    leakage = list(_leaks(splits, normalized))
    warnings += [warning for leak in leakage for warning in _leak_warnings(leak)]
    return DataReport(reports, leakage, warnings, collected=data.collected)


def _shares(head: HeadCounts) -> str:
    if head.numbers:
        return "{min:.4g} to {max:.4g}, mean {mean:.4g}, standard deviation {spread:.4g}".format(**head.numbers)
    return (
        ", ".join(f"{bare(label)} {count / head.labelled:.1%}" for label, count in head.labels.items() if count) or "-"
    )


def _count(rows: Sequence[Row], column: int, head: HeadConfig) -> HeadCounts:
    answers = [answer for row in rows if (answer := row.labels[column]) is not None]
    if head.kind == "regression":
        return HeadCounts(len(answers), None, {}, _numbers(np.array(answers)) if answers else None)
    found = _label_counts(rows, column)
    counts = {label: found[label] for label in head.labels or ()}
    is_single = answers and head.kind != "multilabel"
    return HeadCounts(len(answers), max(counts.values()) / len(answers) if is_single else None, counts)


def _numbers(values: Any) -> dict[str, float]:
    found = {"min": values.min(), "p50": np.median(values), "max": values.max(), "mean": values.mean()}
    return {name: float(value) for name, value in {**found, "spread": values.std()}.items()}


def _offset(head: HeadCounts) -> Warnings:
    """Warns of numbers that are far from 0 for their spread."""
    if head.numbers and abs(head.numbers["mean"]) > _MAX_OFFSET * head.numbers["spread"]:
        found = "mean {mean:.6g}, standard deviation only {spread:.3g}".format(**head.numbers)
        effect = "float32 rounds the answers coarsely for that, which may fail the gate of the export"
        yield f"{found}: {effect}; subtract a constant from all numbers"


def _label_counts(rows: Iterable[Row], column: int) -> Counter[str]:
    return Counter(label for row in rows for label in target_labels(row.labels[column]))


def _is_unlabelled(row: Row) -> bool:
    return all(answer is None for answer in row.labels)


def token_counts(tokens: Any, max_tokens: int) -> TokenCounts:
    """Describes the (rows,) numbers of tokens of texts before truncation; there must be at least one."""
    lost = np.maximum(tokens - max_tokens, 0)  # (rows,)
    p50, p95 = np.percentile(tokens, [50, 95], method="nearest")
    return TokenCounts(
        p50=int(p50),
        p95=int(p95),
        max=int(tokens.max()),
        truncated=round(float((lost > 0).mean()), 4),
        lost=round(float(lost.sum() / tokens.sum()), 4),
    )


def _conflict(first: Row, other: Row) -> bool:
    return any(a is not None and b is not None and a != b for a, b in zip(first.labels, other.labels, strict=True))


def _leaks(splits: Mapping[str, Sequence[Row]], normalized: Mapping[str, Sequence[str]]) -> Iterator[Leak]:
    hashes = {split: signatures(texts) for split, texts in normalized.items()}
    for earlier, later in combinations([split for split, rows in splits.items() if rows], 2):
        exact = exact_pairs(normalized[earlier], normalized[later])
        near = near_pairs(normalized[earlier], normalized[later], (hashes[earlier], hashes[later]))
        examples = [
            (_location(splits[earlier][a]), _location(splits[later][b])) for a, b in [*exact, *near][:_MAX_EXAMPLES]
        ]
        yield Leak((earlier, later), len(exact), len(near), examples)


def _misspelled_fields(data: Data) -> Iterator[str]:
    """Warns of files without a head's field but with a field of a similar name."""
    for source, fields in data.fields.items():
        for head in data.heads:
            rest = [field for field in fields if field not in {other.field for other in data.heads}]
            close = closest(head.field, rest)
            if head.field not in fields and close is not None:
                yield f"{source}: has no field {head.field!r} for head {head.name!r}; did you mean {close!r}?"


def _empty_splits(data: Data) -> Warnings:
    """Warns of splits, and of files of other splits, without rows."""
    effects = {
        "validation": "no epoch is selected, and no temperature or threshold is fitted; set data.validation",
        "test": "nothing is evaluated on it",
    }
    for split in data.empty:
        yield f"{split}: has no rows, so {effects[split]}"
    for source, fields in data.fields.items():
        if not fields:
            yield f"{source}: has no rows"


def _label_warnings(head: HeadConfig, rows: Sequence[Row], column: int) -> Warnings:
    """Warns of labels that are likely spellings of another label, or of a missing one."""
    counts = _label_counts(rows, column)
    first = {label: row for row in reversed(rows) for label in target_labels(row.labels[column])}

    def show(label: str) -> str:
        return f"{label!r} ({counts[label]:,}, first in {_location(first[label])})"

    labels = [label for label in head.labels or () if counts[label]]
    if missing := spelled_missing(labels):
        names = ", ".join(map(show, missing))
        yield f"head {head.name!r}: labels that spell a missing value: {names}; leave the field empty for no label"
    for group in equal_when_folded(label for label in labels if label not in missing):
        names = ", ".join(map(show, group))
        yield f"head {head.name!r}: labels that differ only in case, spaces or invisible characters: {names}"
    pairs = [" and ".join(map(show, pair)) for pair in one_edit_apart(labels) if not set(pair) & set(missing)]
    if pairs:
        yield f"head {head.name!r}: labels that differ by one letter, perhaps misspelled: {summary(pairs, len(pairs))}"


def _single_rows(head: HeadConfig, train: Sequence[Row], column: int) -> Warnings:
    """Warns of labels with a single training row, but for those that spell a missing value."""
    counts = _label_counts(train, column)
    missing = spelled_missing(head.labels or ())
    single = [
        f"{label!r} ({_location(row)})"
        for row in train
        for label in target_labels(row.labels[column])
        if label not in missing and counts[label] == 1
    ]
    if single:
        found = f"labels of head {head.name!r} with one row, too few to learn: {summary(single, len(single))}"
        yield f"train: {found}; add rows, or merge them with other labels"


def _split_warnings(split: str, rows: Sequence[Row], repeats: Sequence[Sequence[int]], report: SplitReport) -> Warnings:
    if split == "train" and 0 < len(rows) < _MIN_ROWS:
        yield f"train: has only {len(rows)} rows; the model is unlikely to be reliable"
    elif 0 < len(rows) < _MIN_ROWS:
        # 95 % confidence interval of an accuracy of 0.5, the widest one.
        margin = min(0.5, 1.96 * math.sqrt(0.25 / len(rows)))
        yield f"{split}: has only {len(rows)} rows; an accuracy on them is uncertain by up to {margin:.0%}"
    if unlabelled := list(filter(_is_unlabelled, rows)):
        yield f"{split}: rows without a label for any head: {summary(map(_location, unlabelled), len(unlabelled))}"
    pairs = [(rows[numbers[0]], rows[number]) for numbers in repeats for number in numbers[1:]]
    for kind, found in (
        ("with a different label", [pair for pair in pairs if _conflict(*pair)]),
        ("with the same label", [pair for pair in pairs if not _conflict(*pair)]),
    ):
        if found:
            yield f"{split}: rows that repeat a text {kind}: {summary(map(_pair, found), len(found))}"
    for name, head in report.heads.items():
        missing = [label for label, count in head.labels.items() if not count]
        if head.labelled and missing:
            noun = "label" if len(missing) == 1 else "labels"
            yield f"{split}: no rows with the {noun} {', '.join(map(repr, missing))} of head {name!r}"
    if report.tokens and report.tokens.truncated > _MAX_TRUNCATED:
        yield f"{split}: {report.tokens.truncated:.0%} of the texts are truncated; consider a higher model.max_tokens"


def _leak_warnings(leak: Leak) -> Warnings:
    if leak.exact or leak.near:
        earlier, later = leak.splits
        counts = f"{leak.exact:,} exact, {leak.near:,} near duplicates"
        examples = "; ".join(f"{first} = {second}" for first, second in leak.examples)
        yield f"{later}: rows that also occur in {earlier} inflate the scores: {counts}: {examples}"


def summary(locations: Iterable[str], count: int) -> str:
    """Formats a count and the first locations."""
    return f"{count:,}: {'; '.join(islice(locations, _MAX_EXAMPLES))}{'; ...' if count > _MAX_EXAMPLES else ''}"


def _pair(rows: tuple[Row, Row]) -> str:
    return f"{_location(rows[0])} = {_location(rows[1])}"


def _location(row: Row) -> str:
    return f"{row.path}:{row.line}"

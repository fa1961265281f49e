"""What there is to know about the rows before anything trains, and what somebody should look at.

::

    Data, numbers of tokens --describe_data--> DataReport --> terminal, data.json, report.html
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np

from .dataset import Data, Row
from .duplicates import exact_pairs, groups, near_pairs, normalize, signatures

# Enough to see a pattern, few enough to read.
_MAX_EXAMPLES = 5
# Share of truncated texts from which on somebody should know.
_MUCH_TRUNCATED = 0.1

Warnings = Iterator[str]


@dataclass(frozen=True)
class HeadCounts:
    """The labels of one head in one split.

    Attributes:
        labelled: Rows that have a label.
        majority_baseline: Share of them that has the commonest label, 0 to 1; None without such rows.
        labels: Rows by label, in the order of the logits.
    """

    labelled: int
    majority_baseline: float | None
    labels: dict[str, int]


@dataclass(frozen=True)
class TokenCounts:
    """The lengths of the texts of a split, in tokens, special tokens included, before they are cut.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        max: Longest.
        truncated: Share of the texts that is cut, 0 to 1.
        lost: Share of the tokens that is cut off, 0 to 1.
    """

    p50: int
    p95: int
    max: int
    truncated: float
    lost: float


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        rows: Its rows.
        unlabelled: Rows without any label.
        heads: By the head's name.
        tokens: None without rows.
        duplicates: Rows that repeat another row but for case, accents and punctuation: ``exact``, and of these
            ``conflicting`` the ones with another label than the first.
    """

    rows: int
    unlabelled: int
    heads: dict[str, HeadCounts]
    tokens: TokenCounts | None
    duplicates: dict[str, int]


@dataclass(frozen=True)
class Leak:
    """Rows of a later split that an earlier one has as well.

    Attributes:
        splits: The two splits.
        exact: Rows that are the same but for case, accents and punctuation.
        near: Other rows that share at least 80 % of their 5-grams with one.
        examples: Where some pairs stand, the row of the earlier split first.
    """

    splits: tuple[str, str]
    exact: int
    near: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class DataReport:
    """What there is to know about the rows.

    Attributes:
        splits: By split: train, validation, test.
        leakage: One for each two splits that have rows.
        warnings: What somebody should look at, a sentence each; none of it keeps a run from training.
    """

    splits: dict[str, SplitReport]
    leakage: list[Leak]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The content of ``data.json``."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        yield f"{'split':<12}{'head':<16}{'rows':>9}{'labelled':>10}  labels"
        for split, found in self.splits.items():
            for name, head in found.heads.items() if found.rows else ():
                shares = (f"{label} {count / head.labelled:.1%}" for label, count in head.labels.items() if count)
                yield f"{split:<12}{name:<16}{found.rows:>9,}{head.labelled:>10,}  {', '.join(shares) or '-'}"
        for split, found in self.splits.items():
            if found.tokens:
                cut = f"{found.tokens.truncated:.1%} of the texts are cut, {found.tokens.lost:.1%} of the tokens lost"
                yield f"{split}: {found.tokens.p50} tokens in the median, {found.tokens.max} at most; {cut}"
        for warning in self.warnings:
            yield f"warning: {warning}"


def describe_data(data: Data, tokens: Mapping[str, Sequence[int]], max_tokens: int) -> DataReport:
    """Describes the rows.

    Args:
        data: The rows.
        tokens: Number of tokens of each row before it is cut, by split.
        max_tokens: Tokens that the model reads.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    normalized = {split: [normalize(row.text) for row in rows] for split, rows in splits.items()}
    warnings = list(_misspelt_fields(data))
    reports = {}
    for split, rows in splits.items():
        repeats = groups(normalized[split])
        conflicting = sum(_differ(rows[numbers[0]], rows[n]) for numbers in repeats for n in numbers[1:])
        reports[split] = SplitReport(
            rows=len(rows),
            unlabelled=sum(not any(row.labels) for row in rows),
            heads={head.name: _count(rows, column, head.labels or ()) for column, head in enumerate(data.heads)},
            tokens=_token_counts(np.array(tokens[split]), max_tokens) if rows else None,
            duplicates={"exact": sum(len(numbers) - 1 for numbers in repeats), "conflicting": conflicting},
        )
        warnings += _split_warnings(split, rows, repeats, reports[split])
    leakage = list(_leaks(splits, normalized))
    warnings += [warning for leak in leakage for warning in _leak_warnings(leak)]
    return DataReport(reports, leakage, warnings)


def _count(rows: Sequence[Row], column: int, labels: Sequence[str]) -> HeadCounts:
    found = Counter(row.labels[column] for row in rows)
    counts = {label: found[label] for label in labels}
    labelled = sum(counts.values())
    return HeadCounts(labelled, max(counts.values()) / labelled if labelled else None, counts)


def _token_counts(tokens: Any, max_tokens: int) -> TokenCounts:
    lost = np.maximum(tokens - max_tokens, 0)  # (rows,)
    p50, p95 = np.percentile(tokens, [50, 95], method="nearest")
    return TokenCounts(
        p50=int(p50),
        p95=int(p95),
        max=int(tokens.max()),
        truncated=round(float((lost > 0).mean()), 4),
        lost=round(float(lost.sum() / tokens.sum()), 4),
    )


def _differ(one: Row, other: Row) -> bool:
    return any(a is not None and b is not None and a != b for a, b in zip(one.labels, other.labels, strict=True))


def _leaks(splits: Mapping[str, Sequence[Row]], normalized: Mapping[str, Sequence[str]]) -> Iterator[Leak]:
    hashes = {split: signatures(texts) for split, texts in normalized.items()}
    for earlier, later in combinations([split for split, rows in splits.items() if rows], 2):
        exact = exact_pairs(normalized[earlier], normalized[later])
        near = near_pairs(normalized[earlier], normalized[later], (hashes[earlier], hashes[later]))
        examples = [(_place(splits[earlier][a]), _place(splits[later][b])) for a, b in [*exact, *near][:_MAX_EXAMPLES]]
        yield Leak((earlier, later), len(exact), len(near), examples)


def _misspelt_fields(data: Data) -> Iterator[str]:
    """Files of which no row has the field of a head, but one that is spelt much like it."""
    for source, fields in data.fields.items():
        for head in data.heads:
            rest = [field for field in fields if field not in {other.field for other in data.heads}]
            close = difflib.get_close_matches(head.field, rest, n=1)
            if head.field not in fields and close:
                yield f"{source}: has no field {head.field!r} for the head {head.name!r}; did you mean {close[0]!r}?"


def _split_warnings(split: str, rows: Sequence[Row], repeats: Sequence[Sequence[int]], report: SplitReport) -> Warnings:
    if unlabelled := [row for row in rows if not any(row.labels)]:
        yield f"{split}: rows without a label for any head: {_some(map(_place, unlabelled), len(unlabelled))}"
    pairs = [(rows[numbers[0]], rows[number]) for numbers in repeats for number in numbers[1:]]
    for what, found in (
        ("with another label", [pair for pair in pairs if _differ(*pair)]),
        ("with the same label", [pair for pair in pairs if not _differ(*pair)]),
    ):
        if found:
            yield f"{split}: rows that repeat a text {what}: {_some(map(_pair, found), len(found))}"
    for name, head in report.heads.items():
        missing = [label for label, count in head.labels.items() if not count]
        if head.labelled and missing:
            yield f"{split}: no row has the label {', '.join(map(repr, missing))} of the head {name!r}"
    if report.tokens and report.tokens.truncated > _MUCH_TRUNCATED:
        yield f"{split}: {report.tokens.truncated:.0%} of the texts are cut; raise model.max_tokens if that matters"


def _leak_warnings(leak: Leak) -> Warnings:
    if leak.exact or leak.near:
        earlier, later = leak.splits
        found = f"{leak.exact:,} the same, {leak.near:,} nearly"
        examples = "; ".join(f"{one} = {other}" for one, other in leak.examples)
        yield f"{later}: rows that {earlier} has as well, which make the scores look better: {found}: {examples}"


def _some(places: Iterable[str], count: int) -> str:
    """How many there are, and where the first ones stand."""
    return f"{count:,}: {'; '.join(islice(places, _MAX_EXAMPLES))}{'; ...' if count > _MAX_EXAMPLES else ''}"


def _pair(rows: tuple[Row, Row]) -> str:
    return f"{_place(rows[0])} = {_place(rows[1])}"


def _place(row: Row) -> str:
    return f"{row.path}:{row.line}"

"""Data quality report: statistics and warnings about the rows, before training starts.

::

    Data, numbers of tokens --describe_data--> DataReport --> terminal, data.json, report.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import bare
from polyhead_training.terminal import format_table

from .dataset import Data, Row
from .duplicates import exact_pairs, groups, near_pairs, normalize, signatures
from .quality_warnings import (
    MAX_EXAMPLES,
    conflict,
    empty_splits,
    is_unlabelled,
    label_counts,
    leak_warnings,
    misspelled_fields,
    offset_warnings,
    similarity_warnings,
    single_rows,
    spelling_warnings,
    split_warnings,
)

if TYPE_CHECKING:
    from .collected import CollectedRows
    from .embedding_report import SourceReport


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

    def describe(self) -> str:
        """Returns a part of a line for a terminal."""
        loss = f"{self.truncated:.1%} of the texts truncated, {self.lost:.1%} of the tokens lost"
        return f"median {self.p50} tokens, maximum {self.max}; {loss}"


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
                yield f"{split}: {found.tokens.describe()}"
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
    warnings = [*misspelled_fields(data), *empty_splits(data), *similarity_warnings(data)]
    for column, head in enumerate(data.heads):
        warnings += spelling_warnings(head, [row for rows in splits.values() for row in rows], column)
        warnings += single_rows(head, data.train, column)
    reports = {}
    for split, rows in splits.items():
        repeats = groups(normalized[split])
        conflicting = sum(conflict(rows[numbers[0]], rows[n]) for numbers in repeats for n in numbers[1:])
        reports[split] = SplitReport(
            rows=len(rows),
            unlabelled=sum(map(is_unlabelled, rows)),
            heads={head.name: _count(rows, column, head) for column, head in enumerate(data.heads)},
            tokens=token_counts(np.array(tokens[split]), max_tokens) if rows else None,
            duplicates={"exact": sum(len(numbers) - 1 for numbers in repeats), "conflicting": conflicting},
        )
        warnings += split_warnings(split, rows, repeats, reports[split])
    for name, counts in reports["train"].heads.items():
        warnings += [f"head {name!r}: {reason}" for reason in offset_warnings(counts)]
    leakage = list(_leaks(splits, normalized))
    warnings += [warning for leak in leakage for warning in leak_warnings(leak)]
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
    found = label_counts(rows, column)
    counts = {label: found[label] for label in head.labels or ()}
    is_single = answers and head.kind != "multilabel"
    return HeadCounts(len(answers), max(counts.values()) / len(answers) if is_single else None, counts)


def _numbers(values: Any) -> dict[str, float]:
    found = {"min": values.min(), "p50": np.median(values), "max": values.max(), "mean": values.mean()}
    return {name: float(value) for name, value in {**found, "spread": values.std()}.items()}


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


def _leaks(splits: Mapping[str, Sequence[Row]], normalized: Mapping[str, Sequence[str]]) -> Iterator[Leak]:
    hashes = {split: signatures(texts) for split, texts in normalized.items()}
    for earlier, later in combinations([split for split, rows in splits.items() if rows], 2):
        exact = exact_pairs(normalized[earlier], normalized[later])
        near = near_pairs(normalized[earlier], normalized[later], (hashes[earlier], hashes[later]))
        examples = [(splits[earlier][a].location, splits[later][b].location) for a, b in [*exact, *near][:MAX_EXAMPLES]]
        yield Leak((earlier, later), len(exact), len(near), examples)

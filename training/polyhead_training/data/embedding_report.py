"""Quality of the embedding's training texts: statistics of each source and warnings, for the data quality report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polyhead_training.suggestions import folded

from .dataset import Data
from .embedding_data import EmbeddingRow
from .embedding_encoding import EncodedEmbedding, EncodedSource
from .quality_report import TokenCounts, token_counts
from .quality_warnings import MAX_TRUNCATED, MIN_ROWS, pair_summary, summary


@dataclass(frozen=True)
class SourceReport:
    """Statistics of a source.

    Attributes:
        name: Its name.
        kind: scored_pairs, pairs or triplets.
        loss: Its loss.
        rows: Number of rows.
        texts: Number of different texts, ignoring case and spaces.
        tokens: Text lengths, prompts included.
        duplicates: Rows with the same texts as an earlier row, in any order for scored pairs.
        conflicting: Scored pairs among them with another score; triplets whose negative is the positive of the same
            anchor in another row.
        scores: Lowest, mean and highest score; None for pairs and triplets.
    """

    name: str
    kind: str
    loss: str
    rows: int
    texts: int
    tokens: TokenCounts
    duplicates: int
    conflicting: int
    scores: tuple[float, float, float] | None

    def line(self) -> str:
        """Returns a line for a terminal."""
        scores = "" if self.scores is None else ", scores {0:g} to {2:g}, mean {1:.2f}".format(*self.scores)
        content = f"{self.rows:,} {self.kind.replace('_', ' ')} of {self.texts:,} texts, loss {self.loss}{scores}"
        return f"embedding {self.name}: {content}; {self.tokens.describe()}"


def describe_embedding(data: Data, encoded: EncodedEmbedding, max_tokens: int) -> tuple[list[SourceReport], list[str]]:
    """Computes the statistics of each source, and warnings about likely faults.

    Args:
        data: The rows, with the texts that evaluate the embedding.
        encoded: The sources as token ids.
        max_tokens: Token limit of the model.
    """
    tokens = np.array(encoded.texts.tokens)  # (texts,)
    evaluated = {
        "data.similarity": {folded(text) for pair in data.similarity for text in (pair.first, pair.second)},
        "data.retrieval": {folded(text) for task in data.retrieval for text in task.queries},
    }
    reports, warnings = [], []
    if encoded.sources and not data.similarity and "similarity" not in data.empty:
        warnings.append("data.similarity is not set, so the embedding has no part in the selection of the best epoch")
    for source in encoded.sources:
        repeats, conflicts = list(_repeats(source)), list(_conflicts(source))
        scores = np.array([row.score for row in source.rows])
        scored = source.config.kind == "scored_pairs"
        report = SourceReport(
            name=source.name,
            kind=source.config.kind,
            loss=source.config.objective,
            rows=len(source),
            texts=len(np.unique(source.groups)),
            tokens=token_counts(tokens[np.unique(source.texts)], max_tokens),
            duplicates=len(repeats),
            conflicting=len(conflicts),
            scores=(float(scores.min()), float(scores.mean()), float(scores.max())) if scored else None,
        )
        reports.append(report)
        warnings += [f"embedding {source.name}: {warning}" for warning in _warnings(report, repeats, conflicts)]
        if same := _same_column(source):
            reason = f"{same}, so no text counts as a negative of another, and nothing is learned from it"
            warnings.append(f"embedding {source.name}: {reason}; add rows with other texts")
        for field, texts in evaluated.items():
            shared = [row for row in source.rows if texts and any(folded(text) in texts for text in row.texts)]
            if shared:
                found = summary((row.location for row in shared), len(shared))
                warnings.append(f"embedding {source.name}: rows with a text of {field} inflate its scores: {found}")
    return reports, warnings


_Pairs = Sequence[tuple[EmbeddingRow, EmbeddingRow]]


def _warnings(report: SourceReport, repeats: _Pairs, conflicts: _Pairs) -> Iterator[str]:
    if report.rows < MIN_ROWS:
        yield f"has only {report.rows} rows"
    if repeats:
        yield f"rows that repeat an earlier row: {pair_summary(repeats)}"
    if conflicts:
        kind = "with another score" if report.kind == "scored_pairs" else "whose negative is a positive elsewhere"
        yield f"rows {kind}: {pair_summary(conflicts)}"
    if report.tokens.truncated > MAX_TRUNCATED:
        yield f"{report.tokens.truncated:.0%} of the texts are truncated; consider a higher model.max_tokens"


def _same_column(source: EncodedSource) -> str:
    """Returns why no row of pairs has a text that is a negative of another row; an empty string if any may have."""
    if source.config.kind != "pairs":
        return ""
    fields = source.config.text_fields
    same = [field for field, column in zip(fields, source.groups.T, strict=True) if len(np.unique(column)) == 1]
    return f"every row has the same {' and '.join(map(repr, same))}" if same else ""


def _repeats(source: EncodedSource) -> Iterator[tuple[EmbeddingRow, EmbeddingRow]]:
    """Yields each row with the texts of an earlier one, after that one."""
    first: dict[tuple[int, ...], int] = {}
    for number, key in enumerate(_keys(source)):
        if (earlier := first.setdefault(key, number)) != number:
            yield source.rows[earlier], source.rows[number]


def _conflicts(source: EncodedSource) -> Iterator[tuple[EmbeddingRow, EmbeddingRow]]:
    if source.config.kind == "scored_pairs":
        yield from ((one, other) for one, other in _repeats(source) if one.score != other.score)
    elif source.config.kind == "triplets":
        positives = {(row[0], row[1]): number for number, row in enumerate(source.groups.tolist())}
        for number, (anchor, _, negative) in enumerate(source.groups.tolist()):
            if (anchor, negative) in positives:
                yield source.rows[positives[anchor, negative]], source.rows[number]


def _keys(source: EncodedSource) -> Iterator[tuple[int, ...]]:
    symmetric = source.config.kind == "scored_pairs"
    return (tuple(sorted(row) if symmetric else row) for row in source.groups.tolist())

"""Texts that train the sentence embedding: scored pairs, pairs and triplets. An invalid row is an error.

::

    files, hub datasets --row_reader.RowReader--> RawRow --checks--> EmbeddingRow --> EmbeddingSource
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from polyhead_rows import Problem, RawRow

from polyhead_training.config import Config
from polyhead_training.embedding_config import EmbeddingSourceConfig, source_names
from polyhead_training.suggestions import folded, shown

from .readers import Source
from .row_reader import RowReader, read_number, read_text


@dataclass(frozen=True, slots=True)
class EmbeddingRow:
    """A row of a source.

    Attributes:
        texts: Its two or three texts, without prompts.
        score: Similarity of a scored pair; 0 for the other kinds.
        path: The file that contains the row, or the name of the hub dataset.
        line: Line of the file on which the row begins, or row of a Parquet file or hub dataset, counted from 1.
    """

    texts: tuple[str, ...]
    score: float
    path: Path
    line: int

    @property
    def location(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class EmbeddingSource:
    """A source of training texts.

    Attributes:
        name: Its name in metrics and messages.
        config: Its section of the configuration.
        rows: Its rows.
        score_range: The scores that the loss ``cosine`` maps to 0 and 1.
    """

    name: str
    config: EmbeddingSourceConfig
    rows: tuple[EmbeddingRow, ...]
    score_range: tuple[float, float]


def read_embedding(config: Config, sources: Mapping[str, Sequence[Source]], reader: RowReader) -> list[EmbeddingSource]:
    """Reads the sources of ``data.embedding``.

    Args:
        config: The configuration.
        sources: Its files, by field.
        reader: Reads the files, and collects the problems of their rows.
    """
    names = source_names(config.data.embedding)
    return [
        _read_source(name, source, f"data.embedding.{index}", sources[f"embedding.{index}.files"], reader)
        for index, (name, source) in enumerate(zip(names, config.data.embedding, strict=True))
    ]


def _read_source(
    name: str, config: EmbeddingSourceConfig, section: str, files: Sequence[Source], reader: RowReader
) -> EmbeddingSource:
    def make(raw: RawRow, _: int) -> EmbeddingRow:
        texts = tuple(read_text(raw, field) for field in config.text_fields)
        if config.kind == "scored_pairs":
            score = read_number(raw, config.all_fields[-1])
            _require_in_range(config, score)
        else:
            score = 0.0
            _require_different(config.text_fields, texts)
        return EmbeddingRow(texts, score, raw.path, raw.line)

    rows = []
    earlier = reader.found
    for file in files:
        before = reader.found
        found = reader.read([file], dict.fromkeys(config.all_fields, f"{section}.fields"), make)
        if not found and reader.found == before:
            reader.add(Problem(file, 0, "has no rows"))
        rows += found
    scores = [row.score for row in rows]
    # Of rows whose scores are invalid, none is among these.
    if config.kind == "scored_pairs" and rows and reader.found == earlier and min(scores) == max(scores):
        reason = f"field {config.all_fields[-1]!r}: the score of every row is {scores[0]:g}, which teaches no order"
        hint = "name the field with the scores, or use kind 'pairs' if the texts of each row belong together"
        reader.add(Problem(files[0], 0, f"{reason}; {hint}"))
    return EmbeddingSource(
        name, config, tuple(rows), config.score_range or (min(scores, default=0.0), max(scores, default=1.0))
    )


def _require_in_range(config: EmbeddingSourceConfig, score: float) -> None:
    if config.score_range is not None and not config.score_range[0] <= score <= config.score_range[1]:
        low, high = config.score_range
        allowed = f"is outside of score_range, {low:g} to {high:g}: correct it, or change score_range"
        raise ValueError(f"field {config.all_fields[-1]!r}: {score:g} {allowed}")


def _require_different(fields: Sequence[str], texts: Sequence[str]) -> None:
    """Rejects a row with a text twice: a positive that equals the anchor teaches nothing, a negative the opposite."""
    for (first, text), (second, other) in combinations(zip(fields, texts, strict=True), 2):
        if folded(text) == folded(other):
            raise ValueError(f"fields {first!r} and {second!r} have the same text, {shown(text)}; remove the row")

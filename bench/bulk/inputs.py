"""Inputs of the measurements of bulk jobs: many texts, made from fewer by small changes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_ROWS = 50_000


def varied(texts: Sequence[str], count: int) -> Iterator[str]:
    """Yields ``count`` texts: the given ones in turn, from the second turn on with one word replaced in each."""
    chosen = random.Random(0)
    words = sorted({word for text in texts for word in text.split()})
    for number in range(count):
        text = texts[number % len(texts)]
        if number >= len(texts):
            parts = text.split() or [""]
            parts[chosen.randrange(len(parts))] = chosen.choice(words)
            text = " ".join(parts)
        yield text


def write_parquet(path: Path, texts: Sequence[str], first_id: int = 0) -> Path:
    """Writes texts with ids; returns the path."""
    table = pa.table({"id": range(first_id, first_id + len(texts)), "text": texts})
    pq.write_table(table, path, row_group_size=_ROW_GROUP_ROWS)
    return path

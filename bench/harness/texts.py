"""Input texts of the benchmark programs. Requires the standard library alone."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO_TEXTS = ROOT / "training/demo/train.jsonl"
FORMAT_HELP = "JSON lines with a field `text`, or one text per line; optionally .gz"


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; every row has at least the field ``text``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as lines:
        content = [line.rstrip("\n") for line in lines]
    if ".json" in "".join(path.suffixes):
        return [json.loads(line) for line in content]
    return [{"text": line} for line in content]


def read_texts(path: Path) -> list[str]:
    """Returns the texts of a file, without their labels."""
    return [row["text"] for row in read(path)]


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Writes texts in the format that the load generators read; returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def zipf_texts(texts: Sequence[str], exponent: float, distinct: int, seed: int) -> Iterator[str]:
    """Yields texts endlessly, the text of rank r with a probability proportional to 1 / r ** exponent.

    Args:
        texts: Texts to make them of.
        exponent: Exponent of Zipf's law.
        distinct: Number of different texts; where there are fewer ``texts``, they recur with a number at their end.
        seed: Seed of the choice.
    """
    rng = random.Random(seed)
    weights = list(itertools.accumulate(rank**-exponent for rank in range(1, distinct + 1)))
    while True:
        for index in rng.choices(range(distinct), cum_weights=weights, k=1000):
            copy, number = divmod(index, len(texts))
            yield f"{texts[number]} {copy}" if copy else texts[number]


def with_long_texts(texts: Sequence[str]) -> list[str]:
    """Returns the texts with every tenth one concatenated with the three that follow it."""
    return [
        " ".join([text, *(texts[(number + step) % len(texts)] for step in (1, 2, 3))]) if number % 10 == 0 else text
        for number, text in enumerate(texts)
    ]

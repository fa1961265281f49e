"""Input texts of the benchmark programs. Requires the standard library alone."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO_TEXTS = ROOT / "training/demo/train.jsonl"
FORMAT_HELP = "JSON lines with a field `text`, or one text per line; optionally .gz"
# Tokens that ``distinct_texts`` adds to a text, with BERT's tokenizers.
MARK_TOKENS = 4


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


def distinct_texts(texts: Sequence[str], seed: int = 0) -> Iterator[str]:
    """Yields the texts in turn, endlessly, each with four letters before it, so that no two in flight are equal.

    A server that computes equal texts in flight once, or keeps answers, gains nothing from them. Each text has the same
    number of tokens more.

    Args:
        texts: Texts to send.
        seed: First of the letters. Sequences with different seeds, up to 26, have no text in common.
    """
    letters = string.ascii_lowercase
    first = letters[seed % len(letters)]
    counts = itertools.cycle(itertools.product(letters, repeat=MARK_TOKENS - 1))
    for text, count in zip(itertools.cycle(texts), counts, strict=False):
        yield " ".join((first, *count, text))


def first_turn(texts: Sequence[str]) -> list[str]:
    """Returns every text once, as ``distinct_texts`` sends it."""
    return list(itertools.islice(distinct_texts(texts), len(texts)))


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

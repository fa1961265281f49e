"""Writes the training and validation files of sst2_agnews.toml from SST-2 and AG News.

The training file of SST-2 contains sentences and, mostly, phrases of these sentences. A random split would put a
sentence into one part and its phrases into the other. This script selects some sentences for validation and keeps for
training only the phrases that none of them contains. The remaining sentences also form a training file of their own,
because the model will be used on sentences. AG News is split at random.

    python training/configs/split_sst2_agnews.py DATA_DIR OUTPUT_DIR
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Shorter phrases are common words rather than parts of a particular sentence.
_MIN_PHRASE_WORDS = 3


def main() -> None:
    """Writes sst2_train, sst2_sentences, sst2_validation, agnews_train and agnews_validation (.jsonl)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of sst2_train, sst2_phrases_train, agnews_train (.jsonl.gz)")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--rows", type=int, default=400, help="validation rows of each dataset (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    arguments = parser.parse_args()
    sentences = _read(arguments.data / "sst2_train.jsonl.gz")
    chosen = random.Random(arguments.seed).sample(sentences, arguments.rows)
    contained = {phrase for row in chosen for phrase in _phrases(_words(row))}
    phrases = _read(arguments.data / "sst2_phrases_train.jsonl.gz")
    kept = [row for row in phrases if " ".join(_words(row)) not in contained]
    arguments.output.mkdir(parents=True, exist_ok=True)
    _write(arguments.output / "sst2_train.jsonl", kept)
    _write(arguments.output / "sst2_validation.jsonl", chosen)
    _write(
        arguments.output / "sst2_sentences.jsonl", [row for row in sentences if " ".join(_words(row)) not in contained]
    )
    news = _read(arguments.data / "agnews_train.jsonl.gz")
    random.Random(arguments.seed).shuffle(news)
    _write(arguments.output / "agnews_train.jsonl", news[arguments.rows :])
    _write(arguments.output / "agnews_validation.jsonl", news[: arguments.rows])
    print(f"{len(kept):,} of {len(phrases):,} phrases and {len(news) - arguments.rows:,} news rows for training")


def _words(row: dict[str, Any]) -> list[str]:
    # Normalized because the two files differ in punctuation.
    return re.findall(r"[a-z0-9]+", str(row["text"]).lower())


def _phrases(words: Sequence[str]) -> Iterable[str]:
    for start in range(len(words)):
        for end in range(start + _MIN_PHRASE_WORDS, len(words) + 1):
            yield " ".join(words[start:end])


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()

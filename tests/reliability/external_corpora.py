"""External text corpora in the directory that POLYHEAD_DATA names; they are not part of the project."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.harness.texts import read

_LANGUAGES = 10


class CorpusNotAvailableError(Exception):
    """A corpus that a scenario needs is not on this machine."""


def naughty_strings() -> list[str]:
    """Returns the Big List of Naughty Strings without its comments.

    Raises:
        CorpusNotAvailableError: The list is missing.
    """
    # Without universal newlines, because some strings contain other line endings.
    lines = _path("blns.txt").read_bytes().decode().split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def texts_by_language(count: int) -> Mapping[str, list[str]]:
    """Returns ``count`` texts of each language by language code.

    Raises:
        CorpusNotAvailableError: The corpus is missing or has too few texts.
    """
    texts: dict[str, list[str]] = {}
    for row in read(_path("multilingual.jsonl.gz")):
        texts.setdefault(row["label"], []).append(row["text"])
    if len(texts) < _LANGUAGES or min(map(len, texts.values())) < count:
        raise CorpusNotAvailableError(f"fewer than {count} texts in each of {_LANGUAGES} languages")
    return {language: texts[language][:count] for language in sorted(texts)}


def _path(name: str) -> Path:
    directory = os.environ.get("POLYHEAD_DATA")
    path = Path(directory or "", name)
    if not directory or not path.exists():
        raise CorpusNotAvailableError(f"POLYHEAD_DATA does not name a directory with {name}")
    return path

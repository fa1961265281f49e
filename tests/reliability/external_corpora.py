"""Texts that others have published, in the folder that $POLYHEAD_DATA names; they are not part of the project."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.harness.texts import read

_LANGUAGES = 10


class NotAvailableError(Exception):
    """What a fault program works on is not on this machine."""


def naughty_strings() -> list[str]:
    """The big list of naughty strings, without its comments.

    Raises:
        NotRunError: It is not there.
    """
    # No universal newlines: some strings hold other line ends.
    lines = _path("blns.txt").read_bytes().decode().split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def texts_by_language(each: int) -> Mapping[str, list[str]]:
    """So many texts of each language, by the language's code.

    Raises:
        NotRunError: They are not there.
    """
    found: dict[str, list[str]] = {}
    for row in read(_path("multilingual.jsonl.gz")):
        found.setdefault(row["label"], []).append(row["text"])
    if len(found) < _LANGUAGES or min(map(len, found.values())) < each:
        raise NotAvailableError(f"there are not {each} texts in each of {_LANGUAGES} languages")
    return {language: found[language][:each] for language in sorted(found)}


def _path(name: str) -> Path:
    folder = os.environ.get("POLYHEAD_DATA")
    path = Path(folder or "", name)
    if not folder or not path.exists():
        raise NotAvailableError(f"POLYHEAD_DATA names no folder with {name}")
    return path

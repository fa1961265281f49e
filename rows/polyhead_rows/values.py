"""Checks that every reader applies to the values of the named fields."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .limits import MAX_VALUE_CHARACTERS
from .types import Problem, RawRow

# Surrogates are not characters: JSON can express them, and undecodable bytes are decoded into them.
SURROGATE = re.compile("[\ud800-\udfff]")
NOT_UTF8 = "is not UTF-8: save the file as UTF-8 (spreadsheet programs call this format 'CSV UTF-8')"


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that cannot be converted.

    Attributes:
        reason: The fault and how to correct it.
    """

    reason: str


def checked(row: RawRow, source: str = "") -> RawRow | Problem:
    """Returns the row, or a ``Problem`` if a named value is too long, not valid Unicode or ``Unreadable``.

    Args:
        row: The row.
        source: The text that the row was parsed from; bytes of it that are not UTF-8 are surrogates.
    """
    for field, value in row.values.items():
        if isinstance(value, Unreadable):
            return row.problem(f"field {field!r}: {value.reason}")
        # A list of labels is as valid as each of its elements.
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (reason := _fault(text, source)):
                return row.problem(reason if reason == NOT_UTF8 else f"field {field!r}: {reason}")
    return row


def _fault(text: str, source: str) -> str:
    """Returns what is wrong with a text; an empty string if nothing is."""
    if len(text) > MAX_VALUE_CHARACTERS:
        return too_long(f"{len(text):,} characters")
    if text.isascii() or not (found := SURROGATE.search(text)):
        return ""
    if found[0] in source:
        return NOT_UTF8
    return f"{found[0]!r} is a lone surrogate; write the complete character, or remove it"


def too_long(size: str) -> str:
    """Returns the reason for a value above the limit."""
    return f"has {size}, more than the limit of {MAX_VALUE_CHARACTERS:,} characters of a value: split or shorten it"


def duplicate_names(names: tuple[str, ...], fields: frozenset[str] | None) -> list[str]:
    """Returns the named fields that occur more than once among the names of a row's fields, in order."""
    named = [name for name in names if fields is None or name in fields]
    return [name for name in dict.fromkeys(named) if named.count(name) > 1]

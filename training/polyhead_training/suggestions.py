"""Suggestions for misspelled names, and names made safe to show."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence

# Unicode categories without a glyph: control and format characters, such as the zero-width space.
_INVISIBLE = ("Cc", "Cf")
# Longer values would make an error message unreadable.
_MAX_SHOWN_CHARACTERS = 80
_MAX_NAMES = 20


def folded(name: str) -> str:
    """Returns the name without differences of case, spaces, invisible characters and Unicode form."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(c for c in plain if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
    return " ".join(visible.split())


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the most similar candidate, of similar ones that with the same letters; None if none is similar."""
    choices = list(candidates)
    equal = [choice for choice in choices if folded(choice) == folded(name)]
    similar = difflib.get_close_matches(name, choices)
    close = equal or sorted(similar, key=lambda choice: sorted(choice) != sorted(name))
    return close[0] if close else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Returns the question ``did you mean 'x'?`` for the most similar candidate; an empty string if none is similar."""
    found = closest(name, candidates)
    return "" if found is None else f"did you mean {found!r}?"


def spelling_hint(name: str, candidates: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?``, the end of a message, or an empty string if no candidate is similar."""
    question = did_you_mean(name, candidates)
    return question and f"; {question}"


def shown(value: object) -> str:
    """Formats a value of a file for a message: as Python would, shortened, with invisible characters escaped."""
    # reprlib bounds the depth and the size of nested values.
    text = repr(value[: _MAX_SHOWN_CHARACTERS + 1]) if isinstance(value, str | bytes) else reprlib.repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS + 2 else f"{text[:_MAX_SHOWN_CHARACTERS]}..."


def type_name(value: object) -> str:
    """Returns the name of a value's type for a message; that of an object of a file is ``dict``."""
    return "dict" if isinstance(value, dict) else type(value).__name__


def listed(names: Sequence[str]) -> str:
    """Formats names for a message, the first ones of many."""
    more = ", ..." if len(names) > _MAX_NAMES else ""
    return ", ".join(map(shown, names[:_MAX_NAMES])) + more


def bare(name: str) -> str:
    """Formats a name for a table: without quotes unless it has invisible characters or spaces around it."""
    return name if name.isprintable() and name == name.strip() else repr(name)

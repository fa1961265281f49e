"""Makes strings that others have chosen safe to print: in log lines, error messages and terminal output."""

from __future__ import annotations

import re

# Invisible characters that ``str.isprintable`` accepts: variation selectors, fillers, the grapheme joiner.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, max_characters: int | None = None) -> str:
    r"""Returns ``text`` with every character escaped that a terminal or a log would not show as itself.

    Control characters, line breaks, escape sequences of terminals, directional and zero-width characters and lone
    surrogates become escapes such as ``\n``, ``\x1b`` and ``\u202e``.

    Args:
        text: Any string.
        max_characters: Number of characters of ``text`` that are kept; the number of the others is stated.
    """
    cut = 0 if max_characters is None else max(0, len(text) - max_characters)
    kept = text[: len(text) - cut]
    if not kept.isprintable() or _INVISIBLE.search(kept):
        kept = "".join(map(_escape, kept))
    return f"{kept}... ({cut:,} more characters)" if cut else kept


def _escape(character: str) -> str:
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    if escape := _ESCAPES.get(character):
        return escape
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

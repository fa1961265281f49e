"""Tokens as a client sees them."""

from __future__ import annotations

from typing import NamedTuple

import tokenizers


class Token(NamedTuple):
    """One token: its id, its text, and the code points of the text that it stands for; None for a special token."""

    id: int
    text: str
    special: bool
    span: tuple[int, int] | None


def tokens_of(encoding: tokenizers.Encoding, head: str, begin: int) -> list[Token]:
    """Returns the tokens of a part of a text that begins at a code point."""
    rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [
        Token(number, token, special=True, span=None)
        if is_special
        else Token(number, head[begin + start : begin + stop], special=False, span=(begin + start, begin + stop))
        for number, token, is_special, (start, stop) in rows
    ]

"""Where a text can be cut so that its parts are tokenized like the whole, and which texts are expensive to tokenize.

WordPiece tries every prefix of a word, and again of what is left of it, so a word costs up to the square of its length.
BERT's tokenizer gives up at 100 letters; a text of such words costs thirty times as much as English.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import tokenizers

# Longest word of an ordinary text. Longer words are rare in all languages that put spaces between words.
MAX_ORDINARY_WORD = 24
# The Unicode blocks whose characters BERT's normalizer makes words of their own.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_LAST_PUNCTUATION = 0x1FFFF
_PLANE = 0x10000


class WordBoundaries:
    """The characters before which a tokenizer always begins a new word."""

    def __init__(self, common: str, rare: str = "") -> None:
        """Compiles the patterns.

        Args:
            common: Content of a character class of regular expressions, of characters of the Basic Multilingual Plane.
            rare: The same for the other planes. Such characters make the class ten times as slow, so that texts with
                words of ordinary length are recognized without them.
        """
        self._boundary = re.compile(f"[{common}{rare}]")
        # Possessive quantifiers make one pass over the text, whatever it contains.
        word = f"[^{common}]{{0,{MAX_ORDINARY_WORD}}}+"
        self._ordinary = re.compile(f"(?:{word}[{common}]++)*+{word}")

    @classmethod
    def whitespace(cls) -> WordBoundaries:
        """Returns the boundaries of a tokenizer about which nothing is known; not to be cut at."""
        return cls(r"\s")

    @classmethod
    def of_bert(cls, tokenizer: tokenizers.Tokenizer) -> WordBoundaries:
        """Returns whitespace, punctuation and ideographs, as far as the tokenizer really begins a word there.

        Args:
            tokenizer: A tokenizer with BERT's normalizer and pre-tokenizer.
        """
        parts = [(ord(one), re.escape(one)) for one in _candidates() if _separates(tokenizer, one)]
        parts += [
            (first, f"{chr(first)}-{chr(last)}")
            for first, last in _IDEOGRAPHS
            if all(_separates(tokenizer, chr(one)) for one in (first, (first + last) // 2, last))
        ]
        common = "".join(part for first, part in parts if first < _PLANE)
        return cls(common, "".join(part for first, part in parts if first >= _PLANE))

    def is_ordinary(self, text: str) -> bool:
        """Returns whether a text has no word beyond ``MAX_ORDINARY_WORD`` characters; may be False without a reason."""
        return self._ordinary.fullmatch(text) is not None

    def next(self, text: str, position: int) -> int:
        """Returns the first boundary in a text from a position on, or the text's end."""
        found = self._boundary.search(text, position)
        return found.start() if found else len(text)

    def cuts(self, text: str, size: int) -> list[tuple[int, int]]:
        """Divides a text into parts of about ``size`` characters; all but the first begin at a boundary."""
        parts, begin = [], 0
        while len(text) - begin > size:
            end = self.next(text, begin + size)
            if end == len(text):
                break
            parts.append((begin, end))
            begin = end
        return [*parts, (begin, len(text))]


@functools.cache
def _candidates() -> list[str]:
    """Whitespace and punctuation of ASCII and of Unicode."""
    beyond = (chr(number) for number in range(0x80, _LAST_PUNCTUATION))
    return [
        *"\t\n\r !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
        *(one for one in beyond if unicodedata.category(one)[0] in "PZ"),
    ]


def _separates(tokenizer: tokenizers.Tokenizer, character: str) -> bool:
    """Returns whether a text with this character in a word is tokenized like the part before it and the rest."""
    before, after = "ab", f"{character}cd"
    whole, *parts = tokenizer.encode_batch_fast([before + after, before, after], add_special_tokens=False)
    return bool(whole.ids == [*parts[0].ids, *parts[1].ids])

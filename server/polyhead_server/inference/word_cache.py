"""BERT's tokenizer for plain ASCII, by looking words up: the library made their ids when they came for the first time.

Of a text of ASCII alone, BERT's normalizer and pre-tokenizer (Devlin et al. 2018, ``BasicTokenizer``) make its words
and its marks of punctuation, perhaps in small letters, and WordPiece cuts each of them by itself. So the ids of a text
are those of its words, one after the other, which is several times as fast as what the library does for Unicode.
"""

from __future__ import annotations

import re
from itertools import chain

import tokenizers

# All that is neither a control character, which is removed, nor more than ASCII.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_WORD = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# The library is better at long texts: it lets others have the interpreter meanwhile.
MOST_CHARACTERS = 2000
# What is learned from a text at most: a word takes as long as looking a hundred up.
_MOST_NEW = 8
# Of English, which has about as many words that are not rare, 8 MB; of the longest words 44.
_MOST_KNOWN = 30_000
_LONGEST_WORD = 40


class PlainWords:
    """Ids of texts of plain ASCII, from those of the words that it has seen. Any thread may ask."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, leading: list[int], trailing: list[int]) -> None:
        """Knows no word yet.

        Args:
            tokenizer: One that ``suits``, without truncation, which reads special tokens in texts as text.
            leading: Ids before those of a text.
            trailing: Ids after them.
        """
        self._tokenizer = tokenizer
        self._leading = leading
        self._trailing = trailing
        self._lowercase = tokenizer.normalizer.lowercase
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, *, learn: bool) -> list[int] | None:
        """Token ids with special tokens; None where the library must make them.

        Args:
            text: Of any length.
            learn: Whether to have the library make the ids of some words that are new, for now and later.
        """
        if len(text) > MOST_CHARACTERS or not _PLAIN.fullmatch(text):
            return None
        words = _WORD.findall(self._cased(text))
        ids = self._joined(words)
        if ids is None and learn and self._learn(words):
            ids = self._joined(words)
        return ids

    def begin(self, text: str, number: int) -> int | None:
        """The code point where a token begins, special ones not counted; None where the library must say."""
        if len(text) > MOST_CHARACTERS or not _PLAIN.fullmatch(text):
            return None
        left = number
        for word in _WORD.finditer(self._cased(text)):
            pieces = len(self._known.get(word[0], ()))
            if not pieces:
                return None
            if left < pieces:
                inside = self._tokenizer.encode(word[0], add_special_tokens=False).offsets[left][0] if left else 0
                return word.start() + inside
            left -= pieces
        return None

    def _cased(self, text: str) -> str:
        return text.lower() if self._lowercase else text

    def _joined(self, words: list[str]) -> list[int] | None:
        try:
            parts = map(self._known.__getitem__, words)
            return [*self._leading, *chain.from_iterable(parts), *self._trailing]
        except KeyError:
            return None

    def _learn(self, words: list[str]) -> bool:
        """Learns the ids of some new words; returns whether those were all."""
        if len(self._known) + _MOST_NEW > _MOST_KNOWN:
            self._known = {}
        known = self._known
        new = {word for word in words if word not in known}
        learned = [word for word in new if len(word) <= _LONGEST_WORD][:_MOST_NEW]
        for word in learned:
            known[word] = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return len(learned) == len(new)


def suits(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether it is one whose words can be looked up: BERT's, with nothing but special tokens added."""
    return (
        isinstance(tokenizer.normalizer, tokenizers.normalizers.BertNormalizer)
        and tokenizer.normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, tokenizers.models.WordPiece)
        and all(added.special for added in tokenizer.get_added_tokens_decoder().values())
    )

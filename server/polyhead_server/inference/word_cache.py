"""A cache of token ids per word, for BERT tokenizers and plain ASCII text.

This is a second, restricted implementation of the BERT tokenizer beside the ``tokenizers`` library, for speed alone:
the token ids are the same. BERT's normalizer and pre-tokenizer (Devlin et al. 2018, ``BasicTokenizer``) split an ASCII
text into words and punctuation marks, in lower case where the model is uncased, and WordPiece cuts each of them by
itself. So the ids of a text are the ids of its words, one after the other. The library makes the ids of a word when it
comes for the first time; from then on a lookup replaces it, which is several times as fast as the library's Unicode
processing. Every other text, and every other tokenizer, is left to the library.
"""

from __future__ import annotations

import re
from itertools import chain

import tokenizers

# Everything but control characters, which BERT removes, and characters beyond ASCII.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_WORD = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# The library is better at longer texts: it releases the interpreter while it works.
MAX_CHARACTERS = 2000
# Words that one text may add. Adding a word takes as long as looking a hundred up.
MAX_NEW_WORDS = 8
# Words in the cache: 8 MB for English, which has about as many that are not rare; 44 MB if all have the longest length.
MAX_WORDS = 30_000
_MAX_WORD_LENGTH = 40


class WordCache:
    """Makes the token ids of plain ASCII texts from the cached ids of their words. Any thread may call it.

    Threads: the dictionary is only added to, or replaced by a new one when it is full; a word's ids are the same
    whichever thread adds them, so no lock is needed.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, leading: list[int], trailing: list[int]) -> None:
        """Starts with an empty cache.

        Args:
            tokenizer: A tokenizer that ``is_cacheable``, without truncation; special tokens in a text are read as text.
            leading: Special token ids before those of a text.
            trailing: Special token ids after them.
        """
        self._tokenizer = tokenizer
        self._leading = leading
        self._trailing = trailing
        self._lowercase = tokenizer.normalizer.lowercase
        self._ids: dict[str, tuple[int, ...]] = {}

    @property
    def size(self) -> int:
        """Number of cached words."""
        return len(self._ids)

    def encode(self, text: str, *, add: bool) -> list[int] | None:
        """Returns the token ids of a text with special tokens; None where the library must make them.

        Args:
            text: Text of any length.
            add: Whether to add some of the unknown words to the cache, with the library's ids.
        """
        if not _is_plain(text):
            return None
        words = _WORD.findall(self._normalized(text))
        ids = self._concatenated(words)
        if ids is None and add and self._add(words):
            ids = self._concatenated(words)
        return ids

    def begin(self, text: str, number: int) -> int | None:
        """Returns the code point where a token begins, special tokens not counted; None where the library must say."""
        if not _is_plain(text):
            return None
        left = number
        for word in _WORD.finditer(self._normalized(text)):
            pieces = len(self._ids.get(word[0], ()))
            if not pieces:
                return None
            if left < pieces:
                inside = self._tokenizer.encode(word[0], add_special_tokens=False).offsets[left][0] if left else 0
                return word.start() + inside
            left -= pieces
        return None

    def _normalized(self, text: str) -> str:
        return text.lower() if self._lowercase else text

    def _concatenated(self, words: list[str]) -> list[int] | None:
        try:
            parts = map(self._ids.__getitem__, words)
            return [*self._leading, *chain.from_iterable(parts), *self._trailing]
        except KeyError:
            return None

    def _add(self, words: list[str]) -> bool:
        """Adds some of the unknown words; returns whether all of them are known now."""
        if len(self._ids) + MAX_NEW_WORDS > MAX_WORDS:
            self._ids = {}
        ids = self._ids
        unknown = {word for word in words if word not in ids}
        added = [word for word in unknown if len(word) <= _MAX_WORD_LENGTH][:MAX_NEW_WORDS]
        for word in added:
            ids[word] = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
        return len(added) == len(unknown)


def is_cacheable(tokenizer: tokenizers.Tokenizer) -> bool:
    """Returns whether the words of a tokenizer can be cached: BERT's, with only special tokens added."""
    return (
        isinstance(tokenizer.normalizer, tokenizers.normalizers.BertNormalizer)
        and tokenizer.normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, tokenizers.models.WordPiece)
        and all(added.special for added in tokenizer.get_added_tokens_decoder().values())
    )


def _is_plain(text: str) -> bool:
    return len(text) <= MAX_CHARACTERS and _PLAIN.fullmatch(text) is not None

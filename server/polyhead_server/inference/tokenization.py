"""Tokenization: converts each text to token ids once, on the event loop or, for long texts, offloaded to a thread."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tokenizers

from .types import TokenizedText
from .windows import spans
from .word_cache import MAX_CHARACTERS, WordCache, is_cacheable

# Tokenizing takes about 0.3 us a character: up to here it is cheaper than a hop to a thread and back (0.1 ms).
_MAX_INLINE_CHARACTERS = 500
# Looking words up in the cache takes a fifth of that.
_MAX_LOOKUP_CHARACTERS = 8192
# Characters that the thread tokenizes before it turns to other messages: about 10 ms. One text alone may need as much.
_MAX_CHUNK_CHARACTERS = 32_768


class Token(NamedTuple):
    """One token: its id, its text, and the code points of the text that it stands for; None for a special token."""

    id: int
    text: str
    special: bool
    span: tuple[int, int] | None


class Placement(enum.Enum):
    """Where the texts of a message are tokenized."""

    INLINE = enum.auto()
    # On the event loop as far as the word cache knows the texts; the others offloaded if they are long.
    LOOKUP = enum.auto()
    OFFLOADED = enum.auto()


class Tokenizer:
    """The bundle's tokenizer with the bundle's limits. Special tokens inside a text are read as plain text.

    Threads: any thread may call ``encode`` and ``close``; the other methods belong to the event loop.
    """

    def __init__(self, path: Path, max_tokens: int, max_characters: int, *, word_cache: bool = True) -> None:
        """Opens a tokenizer.

        Args:
            path: The bundle's ``tokenizer.json``.
            max_tokens: Token limit of the model, special tokens included.
            max_characters: Code points of a text that are read.
            word_cache: Whether to look plain words up where the tokenizer allows it; the token ids are the same.
        """
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens
        self._max_characters = max_characters
        self._leading, self._trailing = _count_special_tokens(self._tokenizer)
        self._words = self._word_cache() if word_cache else None
        self._max_content = max(max_tokens - self._leading - self._trailing, 1)
        # One thread keeps the order of the calls; encode_batch_fast releases the GIL while it works.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenization")

    @property
    def has_word_cache(self) -> bool:
        """Whether plain words are looked up."""
        return self._words is not None

    def close(self) -> None:
        """Ends the thread and frees the word cache."""
        self._executor.shutdown(wait=False)
        self._words = None

    def placement(self, texts: Sequence[str]) -> Placement:
        """Decides where the texts of a message are tokenized: the only place where that is decided."""
        characters = sum(map(len, texts))
        if characters <= _MAX_INLINE_CHARACTERS:
            return Placement.INLINE
        if self._words is not None and characters <= _MAX_LOOKUP_CHARACTERS:
            return Placement.LOOKUP
        return Placement.OFFLOADED

    def offloaded_characters(self, texts: Sequence[str], placement: Placement) -> list[int]:
        """Estimates how many code points of each text are tokenized off the event loop."""
        if placement is Placement.INLINE:
            return [0] * len(texts)
        lookup, limit = placement is Placement.LOOKUP, self._max_characters
        return [
            0 if lookup and length <= MAX_CHARACTERS and text.isascii() else length
            for text, length in ((text, min(len(text), limit)) for text in texts)
        ]

    def chunks(self, texts: Sequence[str]) -> Iterator[slice]:
        """Divides the texts into chunks, tokenized one after the other so that other messages come in between."""
        begin = size = 0
        for number, text in enumerate(texts):
            characters = min(len(text), self._max_characters)
            if number > begin and size + characters > _MAX_CHUNK_CHARACTERS:
                yield slice(begin, number)
                begin, size = number, 0
            size += characters
        yield slice(begin, len(texts))

    async def describe(self, text: str, *, special: bool) -> list[Token]:
        """Returns the tokens of a text, which is cut to the limit of characters and to no other.

        Args:
            text: The text.
            special: Whether to add the special tokens that the model reads.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._describe, text, special)

    def _describe(self, text: str, special: bool) -> list[Token]:
        head = text[: self._max_characters]
        (encoding,) = self._tokenizer.encode_batch([head], add_special_tokens=special)
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        return [
            Token(number, token, special=True, span=None)
            if is_special
            else Token(number, head[begin:end], special=False, span=(begin, end))
            for number, token, is_special, (begin, end) in rows
        ]

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Returns the text of token ids; ids that the vocabulary does not have are skipped."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    async def encode_async(self, texts: list[str], placement: Placement, max_windows: int = 1) -> list[TokenizedText]:
        """Tokenizes like ``encode``, in the place that ``placement`` decided."""
        if placement is Placement.INLINE:
            return self.encode(texts, max_windows)
        if placement is Placement.OFFLOADED:
            return await self._encode_offloaded(texts, max_windows)
        # Unknown words are not added here, which would take as long as the library does.
        known = [self._look_up(text, max_windows, add=False) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        if self.placement(left) is Placement.INLINE:
            return _fill(known, self.encode(left, max_windows))
        return _fill(known, await self._encode_offloaded(left, max_windows))

    def encode(self, texts: list[str], max_windows: int = 1) -> list[TokenizedText]:
        """Returns the token ids of each text, cut to the model's token limit or to so many windows of that length.

        A text beyond the limit of characters is cut there before it is tokenized, which bounds its cost.
        """
        known = [self._look_up(text, max_windows, add=True) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        return _fill(known, self._encode_with_library(left, max_windows))

    async def _encode_offloaded(self, texts: list[str], max_windows: int) -> list[TokenizedText]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.encode, texts, max_windows)

    def _look_up(self, text: str, max_windows: int, *, add: bool) -> TokenizedText | None:
        """Tokenizes a text of known plain words; returns None for any other text."""
        head, words = text[: self._max_characters], self._words
        ids = words.encode(head, add=add) if words else None
        return None if ids is None else self._cut(text, head, ids, max_windows)

    def _encode_with_library(self, texts: list[str], max_windows: int) -> list[TokenizedText]:
        if not texts:
            return []
        heads = [text[: self._max_characters] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        return [
            self._cut(text, head, encoding.ids, max_windows)
            for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def _word_cache(self) -> WordCache | None:
        if not is_cacheable(self._tokenizer):
            return None
        empty = self._tokenizer.encode("").ids
        leading, trailing = empty[: self._leading], empty[self._leading :]
        text = "a b"
        plain = self._tokenizer.encode(text, add_special_tokens=False).ids
        # A tokenizer that puts anything else around a text, or repeats it, is left to the library.
        as_expected = self._tokenizer.encode(text).ids == [*leading, *plain, *trailing]
        return WordCache(self._tokenizer, leading, trailing) if as_expected else None

    def _cut(self, text: str, head: str, ids: list[int], max_windows: int) -> TokenizedText:
        """Cuts the token ids of ``head``, the part of ``text`` that was read, to the limits."""
        if len(ids) <= self._max_tokens:
            return TokenizedText((ids,), len(ids), cut_at=len(head) if len(head) < len(text) else None)
        end = len(ids) - self._trailing
        content = ids[self._leading : end]
        parts = spans(len(content), self._max_content, max_windows)
        windows = tuple([*ids[: self._leading], *content[begin:stop], *ids[end:]] for begin, stop in parts)
        read = parts[-1][1]
        if read == len(content):
            return TokenizedText(windows, len(ids), cut_at=len(head) if len(head) < len(text) else None)
        return TokenizedText(windows, len(ids), cut_at=self._begin(head, read))

    def _begin(self, head: str, number: int) -> int:
        """Returns the code point where a token of the text itself begins."""
        words = self._words
        begin = words.begin(head, number) if words else None
        if begin is not None:
            return begin
        # Offsets are needed only here, and the fast encoding has none.
        (encoding,) = self._tokenizer.encode_batch([head])
        return int(encoding.offsets[self._leading + number][0])


def _fill(known: list[TokenizedText | None], made: list[TokenizedText]) -> list[TokenizedText]:
    """Replaces each None by the next of ``made``."""
    others = iter(made)
    return [next(others) if tokens is None else tokens for tokens in known]


def _count_special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Counts the special tokens before and after a text, such as [CLS] and [SEP]; each window gets them too."""
    mask = tokenizer.encode("a").special_tokens_mask
    return (mask.index(0), mask[::-1].index(0)) if 0 in mask else (0, 0)

"""Texts to token ids: once per text, outside of the event loop where it could take long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tokenizers

from .types import TokenizedText
from .word_cache import MOST_CHARACTERS, PlainWords, suits

# Tokenizing takes about 0.3 us a character: up to here it is cheaper than a hop to a thread and back (0.1 ms).
_INLINE_CHARACTERS = 500
# Looking plain words up takes a fifth of that.
_LOOKED_UP_CHARACTERS = 8192
# What the thread does before it looks for others: about 10 ms, and as little as one text may need at most.
_TURN_CHARACTERS = 32_768
# Share of a window's tokens that the next one reads once more, so that no sentence is only ever seen cut in two.
_OVERLAP = 1 / 8


class Tokenizer:
    """The bundle's tokenizer with the bundle's limits. Special tokens inside a text are read as plain text."""

    def __init__(self, path: Path, max_tokens: int, max_characters: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens
        self._max_characters = max_characters
        self._leading, self._trailing = _count_special_tokens(self._tokenizer)
        self._words = self._plain_words()
        self._content = max(max_tokens - self._leading - self._trailing, 1)
        self._overlap = int(self._content * _OVERLAP)
        # One thread keeps the order of the calls; encode_batch releases the GIL while it works.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenization")

    def close(self) -> None:
        """Ends the thread and forgets the words."""
        self._executor.shutdown(wait=False)
        self._words = None

    def apart(self, texts: Sequence[str]) -> list[int]:
        """About how many code points of each text ``encode_async`` reads apart from the event loop."""
        characters = sum(map(len, texts))
        if characters <= _INLINE_CHARACTERS:
            return [0] * len(texts)
        looked_up = self._words is not None and characters <= _LOOKED_UP_CHARACTERS
        lengths = [self.characters(text) for text in texts]
        return [
            0 if looked_up and length <= MOST_CHARACTERS and text.isascii() else length
            for text, length in zip(texts, lengths, strict=True)
        ]

    def characters(self, text: str) -> int:
        """Code points of a text that are looked at."""
        return min(len(text), self._max_characters)

    def turns(self, texts: Sequence[str]) -> Iterator[slice]:
        """Parts of the texts that are tokenized one after the other, so that others' texts come in between."""
        begin = size = 0
        for number, text in enumerate(texts):
            characters = self.characters(text)
            if number > begin and size + characters > _TURN_CHARACTERS:
                yield slice(begin, number)
                begin, size = number, 0
            size += characters
        yield slice(begin, len(texts))

    async def encode_async(self, texts: list[str], max_windows: int = 1) -> list[TokenizedText]:
        """``encode`` without holding up the event loop."""
        characters = sum(map(len, texts))
        if characters <= _INLINE_CHARACTERS:
            return self.encode(texts, max_windows)
        if characters > _LOOKED_UP_CHARACTERS:
            return await self._encode_apart(texts, max_windows)
        # Nothing is learned here, which would take as long as the library does.
        known = [self._look_up(text, max_windows, learn=False) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        if sum(map(len, left)) <= _INLINE_CHARACTERS:
            return _filled(known, self.encode(left, max_windows))
        return _filled(known, await self._encode_apart(left, max_windows))

    def encode(self, texts: list[str], max_windows: int = 1) -> list[TokenizedText]:
        """Token ids of each text, cut to the model's limit, or to as many windows.

        A text beyond the limit of characters is cut there before it is tokenized, so that its cost is bounded.
        """
        known = [self._look_up(text, max_windows, learn=True) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        return _filled(known, self._make(left, max_windows))

    async def _encode_apart(self, texts: list[str], max_windows: int) -> list[TokenizedText]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.encode, texts, max_windows)

    def _look_up(self, text: str, max_windows: int, *, learn: bool) -> TokenizedText | None:
        """A text of plain words; None for any other."""
        head, words = text[: self._max_characters], self._words
        ids = words.encode(head, learn=learn) if words else None
        return None if ids is None else self._read(text, head, ids, max_windows)

    def _make(self, texts: list[str], max_windows: int) -> list[TokenizedText]:
        """What the library makes of texts."""
        if not texts:
            return []
        heads = [text[: self._max_characters] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        return [
            self._read(text, head, encoding.ids, max_windows)
            for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def _plain_words(self) -> PlainWords | None:
        """What looks plain words up; None where the tokenizer is not one that it suits."""
        if not suits(self._tokenizer):
            return None
        nothing = self._tokenizer.encode("").ids
        leading, trailing = nothing[: self._leading], nothing[self._leading :]
        text = "a b"
        plain = self._tokenizer.encode(text, add_special_tokens=False).ids
        # One that puts anything else around a text, or the text there twice, is the library's business.
        as_expected = self._tokenizer.encode(text).ids == [*leading, *plain, *trailing]
        return PlainWords(self._tokenizer, leading, trailing) if as_expected else None

    def _read(self, text: str, head: str, ids: list[int], max_windows: int) -> TokenizedText:
        if len(ids) <= self._max_tokens:
            return TokenizedText((ids,), len(ids), cut_at=len(head) if len(head) < len(text) else None)
        end = len(ids) - self._trailing
        content = ids[self._leading : end]
        parts = self._windows(len(content), max_windows)
        windows = tuple([*ids[: self._leading], *content[begin:stop], *ids[end:]] for begin, stop in parts)
        read = parts[-1][1]
        if read == len(content):
            return TokenizedText(windows, len(ids), cut_at=len(head) if len(head) < len(text) else None)
        return TokenizedText(windows, len(ids), cut_at=self._begin(head, read))

    def _begin(self, head: str, number: int) -> int:
        """The code point where a token of the text itself begins."""
        words = self._words
        begin = words.begin(head, number) if words else None
        if begin is not None:
            return begin
        # Only here are offsets needed, and the fast encoding has none.
        (encoding,) = self._tokenizer.encode_batch([head])
        return int(encoding.offsets[self._leading + number][0])

    def _windows(self, tokens: int, most: int) -> list[tuple[int, int]]:
        """Begin and end of overlapping windows over so many tokens, all of about one length, which pads little."""
        step = self._content - self._overlap
        count = -(-(tokens - self._overlap) // step)
        if count > most:
            return [(number * step, number * step + self._content) for number in range(most)]
        length = -(-(tokens + (count - 1) * self._overlap) // count)
        begins = [round(number * (tokens - length) / max(count - 1, 1)) for number in range(count)]
        return [(begin, begin + length) for begin in begins]


def _filled(known: list[TokenizedText | None], made: list[TokenizedText]) -> list[TokenizedText]:
    """All of them, in order."""
    others = iter(made)
    return [next(others) if tokens is None else tokens for tokens in known]


def _count_special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Special tokens before and after the text, such as [CLS] and [SEP]; each window gets them, too."""
    mask = tokenizer.encode("a").special_tokens_mask
    return (mask.index(0), mask[::-1].index(0)) if 0 in mask else (0, 0)

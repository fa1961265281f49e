"""Texts to token ids: once per text, outside of the event loop where it could take long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tokenizers

from .items import Tokens

# Tokenizing takes about 0.3 us a character: up to here it is cheaper than a hop to a thread and back (0.1 ms).
_INLINE_CHARACTERS = 500
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
        self._content = max(max_tokens - self._leading - self._trailing, 1)
        self._overlap = int(self._content * _OVERLAP)
        # One thread keeps the order of the calls; encode_batch releases the GIL while it works.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenization")

    def close(self) -> None:
        """Ends the thread."""
        self._executor.shutdown(wait=False)

    async def encode_async(self, texts: list[str], max_windows: int = 1) -> list[Tokens]:
        """``encode`` without holding up the event loop, or others' texts behind a mass of them."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return self.encode(texts, max_windows)
        loop, tokens = asyncio.get_running_loop(), []
        for turn in self._turns(texts):
            tokens += await loop.run_in_executor(self._executor, self.encode, turn, max_windows)
        return tokens

    def encode(self, texts: list[str], max_windows: int = 1) -> list[Tokens]:
        """Token ids of each text, cut to the model's limit, or to as many windows.

        A text beyond the limit of characters is cut there before it is tokenized, so that its cost is bounded.
        """
        heads = [text[: self._max_characters] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        return [
            self._read(text, head, encoding.ids, max_windows)
            for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def _turns(self, texts: list[str]) -> Iterator[list[str]]:
        """Texts in groups of about ``_TURN_CHARACTERS``; a longer text is a group of its own."""
        turn: list[str] = []
        size = 0
        for text in texts:
            read = min(len(text), self._max_characters)
            if turn and size + read > _TURN_CHARACTERS:
                yield turn
                turn, size = [], 0
            turn.append(text)
            size += read
        yield turn

    def _read(self, text: str, head: str, ids: list[int], max_windows: int) -> Tokens:
        if len(ids) <= self._max_tokens:
            return Tokens((ids,), len(ids), cut_at=len(head) if len(head) < len(text) else None)
        end = len(ids) - self._trailing
        content = ids[self._leading : end]
        parts = self._windows(len(content), max_windows)
        windows = tuple([*ids[: self._leading], *content[begin:stop], *ids[end:]] for begin, stop in parts)
        read = parts[-1][1]
        if read == len(content):
            return Tokens(windows, len(ids), cut_at=len(head) if len(head) < len(text) else None)
        # Only here are offsets needed, and the fast encoding has none.
        (encoding,) = self._tokenizer.encode_batch([head])
        return Tokens(windows, len(ids), cut_at=encoding.offsets[self._leading + read][0])

    def _windows(self, tokens: int, most: int) -> list[tuple[int, int]]:
        """Begin and end of overlapping windows over so many tokens, all of about one length, which pads little."""
        step = self._content - self._overlap
        count = -(-(tokens - self._overlap) // step)
        if count > most:
            return [(number * step, number * step + self._content) for number in range(most)]
        length = -(-(tokens + (count - 1) * self._overlap) // count)
        begins = [round(number * (tokens - length) / max(count - 1, 1)) for number in range(count)]
        return [(begin, begin + length) for begin in begins]


def _count_special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Special tokens before and after the text, such as [CLS] and [SEP]; each window gets them, too."""
    mask = tokenizer.encode("a").special_tokens_mask
    return (mask.index(0), mask[::-1].index(0)) if 0 in mask else (0, 0)

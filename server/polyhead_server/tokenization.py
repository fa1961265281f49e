"""Texts to token ids: once per text, outside of the event loop where it could take long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tokenizers

from .items import Tokens

# Tokenizing takes about 0.3 us a character: up to here it is cheaper than a hop to a thread and back (0.1 ms).
_INLINE_CHARACTERS = 500


class Tokenizer:
    """The bundle's tokenizer with the bundle's limits. Special tokens inside a text are read as plain text."""

    def __init__(self, path: Path, max_tokens: int, max_characters: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens
        self._max_characters = max_characters
        self._trailing = _count_trailing_special_tokens(self._tokenizer)
        # One thread keeps the order of the calls; encode_batch releases the GIL while it works.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenization")

    async def encode_async(self, texts: list[str]) -> list[Tokens]:
        """``encode`` without holding up the event loop."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return self.encode(texts)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.encode, texts)

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Token ids of each text, cut to the model's limit.

        A text beyond the limit of characters is cut there before it is tokenized, so that its cost is bounded.
        """
        heads = [text[: self._max_characters] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        return [
            self._cut(text, head, encoding.ids) for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def _cut(self, text: str, head: str, ids: list[int]) -> Tokens:
        if len(ids) > self._max_tokens:
            kept = self._max_tokens - self._trailing
            # Only here are offsets needed, and the fast encoding has none.
            (encoding,) = self._tokenizer.encode_batch([head])
            end_of_text = len(ids) - self._trailing
            return Tokens(ids[:kept] + ids[end_of_text:], len(ids), cut_at=encoding.offsets[kept][0])
        return Tokens(ids, len(ids), cut_at=len(head) if len(head) < len(text) else None)


def _count_trailing_special_tokens(tokenizer: tokenizers.Tokenizer) -> int:
    """Special tokens after the text, such as [SEP]; the model wants to see them after truncation, too."""
    mask = tokenizer.encode("a").special_tokens_mask
    return mask[::-1].index(0) if 0 in mask else 0

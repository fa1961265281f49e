"""Tokenization: converts each text to token ids once, on the event loop or, for long texts, offloaded to a thread."""

from __future__ import annotations

import asyncio
import bisect
import enum
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tokenizers

from polyhead_server.errors import OverloadedError

from .fair_worker import FairWorker
from .tokenizer_probes import count_special_tokens, seconds_per_character
from .tokens import Token, tokens_of
from .types import MAX_PART_ITEMS, Flow, TokenizedText
from .windows import spans
from .word_boundaries import WordBoundaries
from .word_cache import MAX_CHARACTERS, WordCache, is_cacheable

# Tokenizing takes about 0.3 us a character: up to here it is cheaper than a hop to a thread and back (0.1 ms).
_MAX_INLINE_CHARACTERS = 500
# Longest time on the event loop, for texts of the most expensive words.
_MAX_INLINE_S = 0.0003
# Looking words up in the cache takes a fifth of that.
_MAX_LOOKUP_CHARACTERS = 8192
# Characters that are tokenized before the first of their texts enter the queue.
_MAX_CHUNK_CHARACTERS = 32_768
# Characters that the thread tokenizes between two looks at the clock: 2 ms of ordinary texts, or 10 ms of the most
# expensive words. A tokenizer whose words have unknown boundaries tokenizes each text in one step.
_STEP_CHARACTERS = 8192
_EXPENSIVE_STEP_CHARACTERS = 1024
# Calls that may wait until the tokens of another one have been described or decoded.
_MAX_WAITING = 512


_T = TypeVar("_T")


class OffloadedTexts(NamedTuple):
    """Texts that were tokenized, and how long the thread worked for the ordinary ones.

    Attributes:
        texts: The tokenized texts.
        characters: Code points of the texts without words of unusual length that the thread tokenized.
        seconds: Time that they took, without waiting.
    """

    texts: list[TokenizedText]
    characters: int = 0
    seconds: float = 0.0


class Placement(enum.Enum):
    """Where the texts of a message are tokenized."""

    INLINE = enum.auto()
    # On the event loop as far as the word cache knows the texts; the others offloaded if they are long.
    LOOKUP = enum.auto()
    OFFLOADED = enum.auto()


class Tokenizer:
    """The bundle's tokenizer with the bundle's limits.

    Special tokens inside a text, such as ``[SEP]``, are read as plain text; other added tokens stay single tokens.

    Threads: any thread may call ``encode`` and ``close``; the other methods belong to the event loop.

    Attributes:
        unknown_id: Id of the token for what the vocabulary lacks; None for a tokenizer that has none.
        special_tokens: Number of special tokens around each text.
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
        self._leading, self._trailing = count_special_tokens(self._tokenizer)
        empty = self._tokenizer.encode("").ids
        self._special = empty[: self._leading], empty[self._leading :]
        words = self._word_cache()
        self._words = words if word_cache else None
        # A tokenizer whose words can be cached makes the ids of a text word by word.
        self._is_separable = words is not None
        self._boundaries = (
            WordBoundaries.of_bert(self._tokenizer) if self._is_separable else WordBoundaries.whitespace()
        )
        self._max_content = max(max_tokens - self._leading - self._trailing, 1)
        self._max_expensive_inline = _MAX_INLINE_S / seconds_per_character(self._tokenizer)
        # encode_batch_fast releases the GIL while it works.
        self._worker = FairWorker("tokenization")
        # No queue limits what is described and decoded, so one call at a time has a turn on the thread.
        self._turn = asyncio.Lock()
        self._waiting = 0
        unknown = getattr(self._tokenizer.model, "unk_token", None) or "<unk>"
        self.unknown_id: int | None = self._tokenizer.token_to_id(unknown)
        self.special_tokens = self._leading + self._trailing

    def close(self) -> None:
        """Ends the thread and frees the word cache."""
        self._worker.close()
        self._words = None

    def placement(self, texts: Sequence[str]) -> Placement:
        """Decides where the texts of a message are tokenized: the only place where that is decided."""
        characters = sum(map(len, texts))
        if characters <= _MAX_INLINE_CHARACTERS and (
            characters <= self._max_expensive_inline or all(map(self._boundaries.is_ordinary, texts))
        ):
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
            if number > begin and (size + characters > _MAX_CHUNK_CHARACTERS or number - begin >= MAX_PART_ITEMS):
                yield slice(begin, number)
                begin, size = number, 0
            size += characters
        yield slice(begin, len(texts))

    async def describe(self, text: str, flow: Flow, *, special: bool, limit: int | None = None) -> list[Token] | None:
        """Returns the tokens of a text, which is cut to the limit of characters; None if they are too many.

        Args:
            text: The text.
            flow: The call to which the time of the thread is charged.
            special: Whether to add the special tokens that the model reads.
            limit: Largest number of tokens; None for any number.

        Raises:
            OverloadedError: Too many calls wait.
        """
        head = text[: self._max_characters]
        return await self._in_turn(flow, self._describe(head, special=special, limit=limit))

    def _describe(self, head: str, *, special: bool, limit: int | None) -> Generator[None, None, list[Token] | None]:
        parts = self._boundaries.cuts(head, _EXPENSIVE_STEP_CHARACTERS) if self._is_separable else [(0, len(head))]
        tokens: list[Token] = []
        for begin, end in parts:
            yield
            whole = len(parts) == 1
            (encoding,) = self._tokenizer.encode_batch([head[begin:end]], add_special_tokens=special and whole)
            if limit is not None and len(tokens) + len(encoding.ids) > limit:
                return None
            tokens += tokens_of(encoding, head, begin)
        if special and len(parts) > 1:
            around = tokens_of(self._tokenizer.encode(""), "", 0)
            tokens = [*around[: self._leading], *tokens, *around[self._leading :]]
        return tokens

    async def decode(self, ids: Sequence[int], flow: Flow, *, skip_special: bool) -> str:
        """Returns the text of token ids; ids that the vocabulary does not have are skipped.

        Args:
            ids: The ids.
            flow: The call to which the time of the thread is charged.
            skip_special: Whether to leave out special tokens.

        Raises:
            OverloadedError: Too many calls wait.
        """
        return await self._in_turn(flow, self._decode(list(ids), skip_special=skip_special))

    def _decode(self, ids: list[int], *, skip_special: bool) -> Generator[None, None, str]:
        yield
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    async def _in_turn(self, flow: Flow, steps: Generator[None, None, _T]) -> _T:
        if self._waiting >= _MAX_WAITING:
            raise OverloadedError(f"{self._waiting} calls wait for the tokenizer", retry_after_s=1.0)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._worker.run(flow, steps)
        finally:
            self._waiting -= 1

    async def encode_async(
        self, texts: list[str], placement: Placement, flow: Flow, max_windows: int = 1, prefix: int = 0
    ) -> OffloadedTexts:
        """Tokenizes like ``encode``, where ``placement`` says; the time of the thread is charged to ``flow``."""
        if placement is Placement.INLINE:
            return OffloadedTexts(self.encode(texts, max_windows, prefix))
        if placement is Placement.OFFLOADED:
            return await self._worker.run(flow, self._steps(texts, max_windows, prefix))
        # Unknown words are not added here, which would take as long as the library does.
        known = [self._look_up(text, max_windows, prefix, add=False) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        if self.placement(left) is Placement.INLINE:
            return OffloadedTexts(_fill(known, self.encode(left, max_windows, prefix)))
        made = await self._worker.run(flow, self._steps(left, max_windows, prefix))
        return made._replace(texts=_fill(known, made.texts))

    def encode(self, texts: list[str], max_windows: int = 1, prefix: int = 0) -> list[TokenizedText]:
        """Returns the token ids of each text, cut to the model's token limit or to so many windows of that length.

        A text beyond the limit of characters is cut there before it is tokenized, which bounds its cost.

        Args:
            texts: The texts, each with its prompt before it.
            max_windows: Largest number of windows of a text; each begins with the tokens of the prompt.
            prefix: Code points of the prompt, which ``TokenizedText.cut_at`` does not count.
        """
        known = [self._look_up(text, max_windows, prefix, add=True) for text in texts]
        left = [text for text, tokens in zip(texts, known, strict=True) if tokens is None]
        return _fill(known, self._encode_with_library(left, max_windows, prefix))

    def _steps(self, texts: Sequence[str], max_windows: int, prefix: int) -> Generator[None, None, OffloadedTexts]:
        """Tokenizes like ``encode``, in steps of little work."""
        found: list[TokenizedText] = []
        characters, seconds = 0, 0.0
        for group, size, ordinary in self._groups(texts):
            step = _STEP_CHARACTERS if ordinary else _EXPENSIVE_STEP_CHARACTERS
            steps = self._encode_group(group, max_windows, prefix, step)
            spent = 0.0
            while True:
                started = time.monotonic()
                try:
                    next(steps)
                except StopIteration as end:
                    found += end.value
                    break
                finally:
                    spent += time.monotonic() - started
                yield
            if ordinary:
                characters, seconds = characters + size, seconds + spent
        return OffloadedTexts(found, characters, seconds)

    def _groups(self, texts: Sequence[str]) -> Iterator[tuple[list[str], int, bool]]:
        """Groups consecutive ordinary texts; yields each group, its code points and whether it is ordinary."""
        group: list[str] = []
        size = 0
        for text in texts:
            length = min(len(text), self._max_characters)
            ordinary = self._is_ordinary(text)
            if group and (not ordinary or size + length > _STEP_CHARACTERS):
                yield group, size, True
                group, size = [], 0
            if ordinary:
                group.append(text)
                size += length
            else:
                yield [text], length, False
        if group:
            yield group, size, True

    def _is_ordinary(self, text: str) -> bool:
        # A tokenizer to which the words of a text make no difference needs no look at them.
        return self._max_expensive_inline >= _MAX_INLINE_CHARACTERS or self._boundaries.is_ordinary(
            text[: self._max_characters]
        )

    def _encode_group(
        self, texts: list[str], max_windows: int, prefix: int, step: int
    ) -> Generator[None, None, list[TokenizedText]]:
        """Tokenizes some texts; a text of more than ``step`` characters in parts where the tokenizer allows that."""
        head = texts[0][: self._max_characters]
        parts = self._boundaries.cuts(head, step) if self._is_separable and len(texts) == 1 else []
        if len(parts) < 2:
            found = self.encode(texts, max_windows, prefix)
            yield
            return found
        content: list[int] = []
        ends: list[int] = []
        for begin, end in parts:
            (encoding,) = self._tokenizer.encode_batch_fast([head[begin:end]], add_special_tokens=False)
            content += encoding.ids
            ends.append(len(content))
            yield
        ids = [*self._special[0], *content, *self._special[1]]

        def begin_of(number: int) -> int:
            index = bisect.bisect_right(ends, number)
            begin, end = parts[index]
            first = ends[index - 1] if index else 0
            return begin + self._offset(head[begin:end], number - first, add_special_tokens=False)

        return [self._cut(texts[0], head, ids, max_windows, prefix, begin_of)]

    def _look_up(self, text: str, max_windows: int, prefix: int, *, add: bool) -> TokenizedText | None:
        """Tokenizes a text of known plain words; returns None for any other text."""
        head, words = text[: self._max_characters], self._words
        ids = words.encode(head, add=add) if words else None
        return None if ids is None else self._cut(text, head, ids, max_windows, prefix)

    def _encode_with_library(self, texts: list[str], max_windows: int, prefix: int) -> list[TokenizedText]:
        if not texts:
            return []
        heads = [text[: self._max_characters] for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads)
        return [
            self._cut(text, head, encoding.ids, max_windows, prefix)
            for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def _word_cache(self) -> WordCache | None:
        if not is_cacheable(self._tokenizer):
            return None
        leading, trailing = self._special
        words = ("a", "b")
        # Word by word, because a template that repeats the text does so without special tokens, too.
        plain = [number for word in words for number in self._tokenizer.encode(word, add_special_tokens=False).ids]
        # A tokenizer that puts anything else around a text, or repeats it, is left to the library. A letter is one
        # token, so that a repetition shows even where the vocabulary has neither word.
        as_expected = len(plain) == len(words) and self._tokenizer.encode(" ".join(words)).ids == [
            *leading,
            *plain,
            *trailing,
        ]
        return WordCache(self._tokenizer, leading, trailing) if as_expected else None

    def _cut(  # noqa: PLR0917
        self,
        text: str,
        head: str,
        ids: list[int],
        max_windows: int,
        prefix: int,
        begin_of: Callable[[int], int] | None = None,
    ) -> TokenizedText:
        """Cuts the token ids of ``head``, the part of ``text`` that was read, to the limits.

        Args:
            text: The whole text.
            head: Its beginning, up to the limit of characters.
            ids: Token ids of ``head``, with special tokens.
            max_windows: Largest number of windows.
            prefix: Code points of ``text`` before those that the client sent.
            begin_of: Returns the code point where a token of the text itself begins; None to tokenize it again.
        """
        cut_at = max(len(head) - prefix, 0) if len(head) < len(text) else None
        if len(ids) <= self._max_tokens:
            return TokenizedText((ids,), len(ids), cut_at)
        # With one window, the prefix is the beginning of its content.
        repeated = self._prefix_tokens(head, prefix) if prefix and max_windows > 1 else 0
        begin_of_content, end = self._leading + repeated, len(ids) - self._trailing
        content = ids[begin_of_content:end]
        parts = spans(len(content), self._max_content - repeated, max_windows)
        windows = tuple([*ids[:begin_of_content], *content[begin:stop], *ids[end:]] for begin, stop in parts)
        read = parts[-1][1]
        if read < len(content):
            number = repeated + read
            cut_at = max((begin_of(number) if begin_of else self._begin(head, number)) - prefix, 0)
        return TokenizedText(windows, len(ids), cut_at)

    def _prefix_tokens(self, head: str, prefix: int) -> int:
        """Counts the tokens that end within the first code points, as far as they leave a token of a window."""
        # The words after the prefix make no difference to a tokenizer that makes the ids of a text word by word.
        end = self._boundaries.next(head, prefix) if self._is_separable else len(head)
        (encoding,) = self._tokenizer.encode_batch([head[:end]], add_special_tokens=False)
        return min(bisect.bisect_right([stop for _, stop in encoding.offsets], prefix), self._max_content - 1)

    def _begin(self, head: str, number: int) -> int:
        """Returns the code point where a token of the text itself begins."""
        words = self._words
        begin = words.begin(head, number) if words else None
        return self._offset(head, self._leading + number) if begin is None else begin

    def _offset(self, text: str, number: int, *, add_special_tokens: bool = True) -> int:
        # Offsets are needed only here, and the fast encoding has none.
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        return int(encoding.offsets[number][0])


def _fill(known: list[TokenizedText | None], made: list[TokenizedText]) -> list[TokenizedText]:
    """Replaces each None by the next of ``made``."""
    others = iter(made)
    return [next(others) if tokens is None else tokens for tokens in known]

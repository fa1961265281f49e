"""What a tokenizer does to a text, found out when it is opened."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Sequence

import tokenizers


def count_special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Counts the special tokens before and after a text, such as [CLS] and [SEP]; each window gets them too.

    Raises:
        ValueError: The post-processor gives a special token another number of ids than of names.
    """
    encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    if not len(encoding.ids) == len(encoding.tokens) == len(mask) == len(encoding.offsets):
        raise ValueError("its post_processor gives a special token another number of ids than of tokens")
    return (mask.index(0), mask[::-1].index(0)) if 0 in mask else (0, 0)


def seconds_per_character(tokenizer: tokenizers.Tokenizer) -> float:
    """Measures the tokenizer with expensive words: a hundred letters, most of which are a piece of their own."""
    pieces = (piece.removeprefix("##") for piece in tokenizer.get_vocab())
    # Latin letters, and those of the vocabulary for one that has no Latin letters.
    alphabets = string.ascii_lowercase, sorted({piece for piece in pieces if len(piece) == 1 and piece.isalpha()})
    return max(_seconds_for_words_of(tokenizer, letters) for letters in alphabets if letters)


def _seconds_for_words_of(tokenizer: tokenizers.Tokenizer, letters: Sequence[str]) -> float:
    choices = random.Random(0)  # noqa: S311 - no secret
    text = " ".join("".join(choices.choices(letters, k=100)) for _ in range(5))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        tokenizer.encode_batch_fast([text])
        best = min(best, time.perf_counter() - started)
    return best / len(text)

"""Texts to token ids, by the one rule that training, export and server share.

A text of more than ``max_tokens`` tokens keeps its leading special tokens, the first ids that fit, and its trailing
special tokens. Special tokens that are spelt out in a text are text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

# Texts handed to the tokenizer at once: enough to keep its threads busy, few enough to hold no second copy of the data.
_CHUNK = 1024


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json`` as it is.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or is no tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exception, and panics, which is none, over some damages.
    except BaseException as error:
        raise ValueError(str(error)) from error


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json`` and switches off whatever padding and truncation it brings.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or is no tokenizer.
    """
    return configured(read_tokenizer(path))


def configured(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with padding and truncation off, and with spelt out special tokens read as text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Iterator[list[int]]:
    """Token ids of each text, special tokens included, cut to ``max_tokens``.

    Args:
        tokenizer: A tokenizer that ``configured`` has seen.
        texts: N texts.
        max_tokens: Longest list of ids, at least the number of special tokens.

    Returns:
        N lists of ids, in the order of the texts.
    """
    return (ids for ids, _ in encode_counted(tokenizer, texts, max_tokens))


def encode_counted(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[list[int], int]]:
    """The same, each with the number of tokens that the text has before it is cut."""
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK])):
            yield _cut(encoding, max_tokens), len(encoding)


def pad(ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fills lists of ids up to the longest of them, on the right.

    Args:
        ids: B lists of ids.
        pad_token_id: What to fill up with.

    Returns:
        ``input_ids`` and ``attention_mask``, (B, T) each; the mask is 1 for ids and 0 for padding.
    """
    shape = (len(ids), max(map(len, ids), default=0))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros(shape, dtype=np.int64)  # (B, T)
    for row, values in enumerate(ids):
        input_ids[row, : len(values)] = values
        attention_mask[row, : len(values)] = 1
    return input_ids, attention_mask


def _cut(encoding: Encoding, max_tokens: int) -> list[int]:
    ids = encoding.ids
    if len(ids) <= max_tokens:
        return ids
    trailing = sum(1 for _ in takewhile(bool, reversed(encoding.special_tokens_mask)))
    return ids[: max_tokens - trailing] + ids[len(ids) - trailing :]

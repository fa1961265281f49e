"""Tokenization of texts, with the truncation rule that training, export and server share.

A text of more than ``max_tokens`` tokens keeps its leading special tokens, the first ids that fit, and its trailing
special tokens. The names of special tokens inside a text, such as ``[SEP]``, are tokenized as ordinary text. Any other
added token stays a single token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

# Texts and characters per tokenizer call: enough to keep its threads busy, few enough to bound its memory, about
# 200 bytes for each character.
_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 2**20


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json`` unchanged.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or is not a valid tokenizer.
    """
    try:
        return Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exception; for some damage it panics, which raises a BaseException.
    except BaseException as error:
        raise ValueError(str(error)) from error


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json`` and disables its padding and truncation.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or is not a valid tokenizer.
    """
    return configured(read_tokenizer(path))


def configured(tokenizer: Tokenizer) -> Tokenizer:
    """Disables padding, truncation and the parsing of special tokens in texts; returns the same tokenizer."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Iterator[list[int]]:
    """Yields the token ids of each text, special tokens included, truncated to ``max_tokens``.

    Args:
        tokenizer: A tokenizer from ``configured`` or ``load_tokenizer``.
        texts: N texts.
        max_tokens: Maximum number of ids, at least the number of special tokens.

    Returns:
        N lists of ids, in the order of the texts.
    """
    return (ids for ids, _ in encode_counted(tokenizer, texts, max_tokens))


def encode_counted(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Yields the same ids as ``encode``, each with the text's number of tokens before truncation."""
    for chunk in chunks(texts, _CHUNK_TEXTS, _CHUNK_CHARACTERS):
        for encoding in tokenizer.encode_batch_fast(chunk):
            yield _truncate(encoding, max_tokens), len(encoding)


def overlong_prompts(tokenizer: Tokenizer, prompts: Mapping[str, str], max_tokens: int) -> dict[str, int]:
    """Returns the prompts that leave no token for a text, by name, each with its number of tokens.

    Args:
        tokenizer: A tokenizer from ``configured`` or ``load_tokenizer``.
        prompts: Texts by name.
        max_tokens: Maximum number of ids of a text, special tokens and prompt included.
    """
    counts = (tokens for _, tokens in encode_counted(tokenizer, list(prompts.values()), max_tokens))
    return {name: tokens for name, tokens in zip(prompts, counts, strict=True) if tokens >= max_tokens}


def chunks(texts: Sequence[str], max_texts: int, max_characters: int) -> Iterator[list[str]]:
    """Splits texts into lists of at most ``max_texts`` and ``max_characters``; a longer text is a list of its own."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and (len(chunk) == max_texts or size + len(text) > max_characters):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def pad(ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pads lists of ids on the right to the length of the longest.

    Args:
        ids: B lists of ids.
        pad_token_id: The padding id.

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


def textless_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the ids that stand for no part of a text: those of the special tokens and of unknown characters."""
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    unknown = getattr(tokenizer.model, "unk_token", None)
    number = None if unknown is None else tokenizer.token_to_id(unknown)
    return frozenset(special if number is None else [*special, number])


def unread_texts(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[int]:
    """Returns the numbers of the texts that a tokenizer reads nothing of, although they are not blank.

    Args:
        tokenizer: The tokenizer.
        texts: N texts.
        ids: Their token ids.
    """
    textless = textless_ids(tokenizer)
    return [
        number
        for number, (text, found) in enumerate(zip(texts, ids, strict=True))
        if textless.issuperset(found) and text.strip()
    ]


def _truncate(encoding: Encoding, max_tokens: int) -> list[int]:
    ids = encoding.ids
    if len(ids) <= max_tokens:
        return ids
    trailing = sum(1 for _ in takewhile(bool, reversed(encoding.special_tokens_mask)))
    return ids[: max_tokens - trailing] + ids[len(ids) - trailing :]

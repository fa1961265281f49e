"""Encoded rows and padded batches of rows of similar length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from polyhead_training.model_config import HeadConfig
from polyhead_training.tokenization import encode_counted, pad

from .dataset import Row
from .target_tensors import Targets


class Batch(NamedTuple):
    """A padded batch, the input of one forward pass.

    Attributes:
        input_ids: (B, T) int64 token ids.
        attention_mask: (B, T) int64, 1 for the text's tokens and 0 for padding.
        labels: True answers for each head.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Targets


@dataclass(frozen=True)
class EncodedRows:
    """Rows as token ids and encoded answers.

    Attributes:
        ids: Token ids of each row, special tokens included.
        labels: True answers for each head.
        pad_token_id: Token that pads the shorter rows of a batch.
        sources: For each row, the index of its source in ``data.train``.
        tokens: For each row, its number of tokens before truncation.
    """

    ids: list[list[int]]
    labels: Targets
    pad_token_id: int
    sources: list[int]
    tokens: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int], device: torch.device) -> Batch:
        """Builds a batch of the rows with these numbers, padded to the longest of them, on a device."""
        input_ids, attention_mask = pad([self.ids[row] for row in rows], self.pad_token_id)
        ids, mask = torch.from_numpy(input_ids).to(device), torch.from_numpy(attention_mask).to(device)
        return Batch(ids, mask, self.labels.rows(rows).to(device))

    def select(self, rows: Sequence[int]) -> EncodedRows:
        """Returns the rows with these numbers."""
        ids, sources, tokens = ([values[row] for row in rows] for values in (self.ids, self.sources, self.tokens))
        return EncodedRows(ids, self.labels.rows(rows), self.pad_token_id, sources, tokens)  # type: ignore[arg-type]

    def by_length(self, size: int) -> list[list[int]]:
        """Splits all row numbers into batches of ``size``, the longest rows first."""
        order = sorted(range(len(self)), key=lambda row: len(self.ids[row]), reverse=True)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def labelled(self) -> list[int]:
        """Returns a bit mask for each row: bit i is set when the row has a label for head i."""
        marks = self.labels.labelled()  # (rows, heads)
        return [int(number) for number in (marks * 2 ** torch.arange(marks.shape[1])).sum(dim=1)]

    def digest(self) -> str:
        """Computes the SHA-256 over ids and answers, in order."""
        found = hashlib.sha256()
        for answers in self.labels.arrays():
            found.update(answers.tobytes())
        for ids in self.ids:
            found.update(array("q", [len(ids), *ids]))
        return found.hexdigest()


def encode_rows(  # noqa: PLR0917
    rows: Sequence[Row],
    heads: Sequence[HeadConfig],
    tokenizer: Tokenizer,
    max_tokens: int,
    pad_token_id: int,
    prefix: str = "",
) -> EncodedRows:
    """Converts texts into token ids, truncated to ``max_tokens``, and answers into tensors.

    Args:
        rows: The rows.
        heads: The heads with their labels.
        tokenizer: The tokenizer.
        max_tokens: Maximum number of ids of a text, with its prefix.
        pad_token_id: Token that pads the shorter rows of a batch.
        prefix: Text before every text.
    """
    encoded = encode_texts([prefix + row.text for row in rows], tokenizer, max_tokens, pad_token_id)
    labels = Targets.encode([row.labels for row in rows], heads)
    return replace(encoded, labels=labels, sources=[row.source for row in rows])


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, pad_token_id: int) -> EncodedRows:
    """Converts texts into rows without answers; takes the same arguments as ``encode_rows``."""
    counted = list(encode_counted(tokenizer, texts, max_tokens))
    ids, tokens = [ids for ids, _ in counted], [tokens for _, tokens in counted]
    return EncodedRows(ids, Targets((), len(ids)), pad_token_id, sources=[0] * len(ids), tokens=tokens)

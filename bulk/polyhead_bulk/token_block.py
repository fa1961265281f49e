"""A block of tokenized texts, which are sorted by length together, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import TokenizedText

# Texts that are tokenized by one call; the Python objects of their token ids exist only meanwhile.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 500_000
# A batch holds no text shorter than this share of its longest one, unless it would be smaller than a core can use.
_MIN_LENGTH_SHARE = 0.8
_MIN_BATCH_TOKENS = 128


class TokenBlock:
    """Token ids of the windows of some texts, in flat arrays; most texts are one window.

    Attributes:
        ids: Token ids of all windows, one after the other.
        starts: (W,) position of each window in ``ids``.
        lengths: (W,) tokens of each window.
        rows: (W,) text of each window.
        seen: (N,) tokens of each text before truncation.
        truncated: (N,) whether a part of the text is not read.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        rows: NDArray[np.intp],
        seen: NDArray[np.int32],
        truncated: NDArray[np.bool_],
    ) -> None:
        self.ids = ids
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) if len(lengths) else lengths
        self.rows = rows
        self.seen = seen
        self.truncated = truncated

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: Sequence[str], max_windows: int, prefix: int = 0) -> TokenBlock:
        """Tokenizes texts as the server does.

        Args:
            tokenizer: The model's tokenizer.
            texts: The texts.
            max_windows: Maximum number of windows of a text; 1 to cut texts at the token limit.
            prefix: Code points of the prompt before each text.
        """
        ids: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        rows: list[int] = []
        seen = np.zeros(len(texts), np.int32)
        truncated = np.zeros(len(texts), np.bool_)
        for part in _chunks(texts):
            encoded: list[TokenizedText] = tokenizer.encode(list(texts[part]), max_windows, prefix)
            for row, text in enumerate(encoded, part.start):
                seen[row] = text.seen
                truncated[row] = text.cut_at is not None
                for window in text.windows:
                    lengths.append(len(window))
                    rows.append(row)
            windows = chain.from_iterable(text.windows for text in encoded)
            ids.append(np.fromiter(chain.from_iterable(windows), np.int32))
        flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return cls(flat, np.array(lengths, np.int32), np.array(rows, np.intp), seen, truncated)

    def batches(self, windows: NDArray[np.intp], max_tokens: int) -> Iterator[NDArray[np.intp]]:
        """Yields batches of windows of similar length, the longest first.

        Args:
            windows: The windows to compute.
            max_tokens: Batch size limit in tokens, padding included; a longer window is a batch of its own.
        """
        order = windows[np.argsort(-self.lengths[windows], kind="stable")]
        falling = -self.lengths[order]
        begin = 0
        while begin < len(order):
            width = max(int(-falling[begin]), 1)
            similar = int(np.searchsorted(falling, -int(_MIN_LENGTH_SHARE * width), side="right"))
            size = min(max(max_tokens // width, 1), max(similar - begin, _MIN_BATCH_TOKENS // width, 1))
            yield order[begin : begin + size]
            begin += size

    def pad(self, batch: NDArray[np.intp], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the inputs of the model for some windows.

        Args:
            batch: (B,) windows.
            pad_token_id: Id that fills the shorter windows up.

        Returns:
            Token ids (B, T), and the attention mask (B, T): 1 for real tokens, 0 for padding.
        """
        lengths = self.lengths[batch]
        positions = np.arange(int(lengths.max()))
        real = positions < lengths[:, None]  # (B, T)
        input_ids = np.full(real.shape, pad_token_id, np.int64)  # (B, T)
        input_ids[real] = self.ids[(self.starts[batch][:, None] + positions)[real]]
        return input_ids, real.astype(np.int64)


def _chunks(texts: Sequence[str]) -> Iterator[slice]:
    """Divides texts into chunks that are tokenized at once."""
    begin = size = 0
    for number, text in enumerate(texts):
        if number > begin and (number - begin >= _CHUNK_TEXTS or size + len(text) > _CHUNK_CHARACTERS):
            yield slice(begin, number)
            begin, size = number, 0
        size += len(text)
    if begin < len(texts):
        yield slice(begin, len(texts))

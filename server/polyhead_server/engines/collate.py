"""Collates token ids into the arrays that an engine takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pad(batch: list[list[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pads the token ids of B texts to the longest text.

    Args:
        batch: Token ids of each text.
        pad_token_id: Id that fills the shorter texts up.

    Returns:
        Token ids (B, T), and the attention mask (B, T): 1 for real tokens, 0 for padding.
    """
    width = max(map(len, batch))
    input_ids = np.full((len(batch), width), pad_token_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros((len(batch), width), dtype=np.int64)  # (B, T)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask

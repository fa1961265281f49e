"""An engine of a few numbers, whose outputs prove which text they belong to, and its vocabulary."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
from numpy.typing import NDArray
from polyhead_server.engines import Runtime

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "poison", *(f"w{number}" for number in range(200))]
MAX_TOKENS = 16


class Panic(BaseException):
    """Like a panic of a Rust library: not an Exception."""


class FakeEngine:
    """Embeds a text as (sum of its ids, number of its tokens) and computes the logits of every head from the sum.

    Attributes:
        batch_shapes: The (B, T) shape of every batch, in order.
        gate: Batches wait here while it is not set.
        error: Raised instead of an answer, when it is set and the batch contains the word "poison".
        closed: Whether the engine was closed.
    """

    def __init__(self) -> None:
        self.runtime = Runtime("fake", "cpu", "fp32")
        self.batch_shapes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.closed = False
        self._entered = threading.Event()

    async def hold(self) -> None:
        """Waits until a batch stands before the closed gate."""
        assert await asyncio.to_thread(self._entered.wait, 30)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        self._entered.set()
        assert self.gate.wait(30)
        self.batch_shapes.append(input_ids.shape)
        sums = (input_ids * attention_mask).sum(axis=1).astype(np.float32)  # (B,)
        counts = attention_mask.sum(axis=1).astype(np.float32)  # (B,)
        if self.error and (input_ids == WORDS.index("poison")).any():
            raise self.error
        logits = np.stack([sums, np.zeros_like(sums), -sums], axis=1) / 100  # (B, 3)
        return [np.stack([sums, counts], axis=1), logits, (sums / 100)[:, None]]

    def close(self) -> None:
        self.closed = True


def embedding_of(text: str) -> list[float]:
    """Returns the fake engine's embedding of a text of known words."""
    ids = [WORDS.index("[CLS]"), *(WORDS.index(word) for word in text.split()), WORDS.index("[SEP]")]
    return [float(sum(ids)), float(len(ids))]

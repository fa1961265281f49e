"""Texts of random tokens and random lengths, the same in every run, for what evaluation data may lack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from polyhead_training.model import PolyheadConfig


class RandomTexts:
    """Draws texts for a model.

    Args:
        config: The model's configuration.
        seed: Seed of every random choice.
    """

    def __init__(self, config: PolyheadConfig, seed: int) -> None:
        self.config = config
        self._random = np.random.default_rng(seed)
        vocabulary = np.arange(config.backbone_config().vocab_size)
        # RoBERTa treats a padding token inside a text as its end, whatever the attention mask says.
        self._vocabulary = vocabulary[vocabulary != config.pad_token_id]

    def texts(self, count: int, max_length: int) -> list[list[int]]:
        """Returns ``count`` texts of 1 to ``max_length`` tokens."""
        lengths = self._random.integers(1, min(max_length, self.config.max_tokens), size=count, endpoint=True)
        return [self._text(length) for length in lengths]

    def ragged_batches(self) -> Iterator[Sequence[Sequence[int]]]:
        """Yields batches whose shapes reveal fixed dimensions: a single text, many texts, the longest text."""
        for count, max_length in ((1, 3), (7, 33), (33, 7), (2, self.config.max_tokens)):
            longest = self._text(min(max_length, self.config.max_tokens))
            yield [*self.texts(count - 1, max_length), longest]

    def _text(self, length: int) -> list[int]:
        text: list[int] = self._random.choice(self._vocabulary, size=length).tolist()
        return text

"""A fake model with a head of each kind, and an engine that computes their logits from the tokens of a text."""

from __future__ import annotations

import dataclasses

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from tests.support.fake_engine import FakeEngine

TAGS = bundle.Head("tags", "multilabel", "tags_logits", ("late", "broken", "rude"), thresholds=(0.5, 0.2, 0.6))
STARS = bundle.Head("stars", "ordinal", "stars_logits", ("1", "2", "3", "4", "5"))
PRICE = bundle.Head("price", "regression", "price_logits", (), spread=12.5)
# The answers to the text "w1", whose token ids sum up to 11.
TAGS_OF_W1 = {"late": 0.7503, "rude": 0.5, "broken": 0.2497}
STARS_OF_W1 = {"1": 0.1091, "2": 0.1406, "3": 0.2253, "4": 0.2359, "5": 0.2891}
VALUE_OF_W1 = 3.4552
PRICE_OF_W1 = 110.0


def with_all_heads(manifest: bundle.Manifest) -> bundle.Manifest:
    """Returns the manifest of a softmax and a sigmoid head with a head of each other kind."""
    heads = (*manifest.heads, TAGS, STARS, PRICE)
    return with_heads(manifest, heads)


def with_heads(manifest: bundle.Manifest, heads: tuple[bundle.Head, ...]) -> bundle.Manifest:
    """Returns the manifest with other heads."""
    fingerprints = bundle.Fingerprints("e" * 16, {head.name: head.name[0] * 16 for head in heads})
    variant = dataclasses.replace(manifest.variants["fp32"], fingerprints=fingerprints)
    return dataclasses.replace(manifest, heads=heads, variants={"fp32": variant})


class AllHeadsEngine(FakeEngine):
    """A fake engine for ``with_all_heads``; ``kept`` are the positions of the heads that the model has."""

    def __init__(self, kept: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        self._kept = kept

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        embedding, *logits = super().run(input_ids, attention_mask)
        sums = embedding[:, :1] / np.float32(10)  # (B, 1)
        tags = sums * np.array([1, -1, 0], np.float32)  # (B, 3)
        stars = sums + np.array([1, 0, -1, -2], np.float32)  # (B, 4)
        heads = [*logits, tags, stars, sums * np.float32(100)]
        return [embedding, *(heads[index] for index in self._kept)]

"""Shorter forms of sentence embeddings: the first dimensions, and the encodings that the server offers.

A form is returned as float vectors whose cosines are the similarities that a user of the form computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .probabilities import Floats

ENCODINGS = ("float32", "int8", "binary")
# Dimensions that are evaluated for an embedding that was not trained for any, so that a user sees what cutting costs.
DEFAULT_DIMENSIONS = (256, 128, 64)
_MAX_INT8 = 127


class Form(NamedTuple):
    """A form of an embedding.

    Attributes:
        dimensions: Number of its first dimensions.
        encoding: ``float32``, ``int8`` (whole numbers from -127 to 127 of the largest value) or ``binary`` (signs).
    """

    dimensions: int
    encoding: str


def forms(size: int, matryoshka: Sequence[int]) -> Iterator[Form]:
    """Yields the forms that are evaluated, the longest first.

    Args:
        size: Dimensions of the embedding.
        matryoshka: Dimensions that it was trained for.
    """
    counts = {size, *(count for count in matryoshka or DEFAULT_DIMENSIONS if count < size)}
    for dimensions in sorted(counts, reverse=True):
        yield from (Form(dimensions, encoding) for encoding in ENCODINGS)


def encode(vectors: Floats, form: Form) -> Floats:
    """Returns (N, dimensions) float32 vectors with the cosines of a form of (N, E) embeddings, of length 1 or 0."""
    cut = np.asarray(vectors[:, : form.dimensions], dtype=np.float32)
    if form.encoding == "int8":
        largest = np.abs(cut).max(axis=1, keepdims=True)
        cut = np.rint(cut / np.where(largest > 0, largest, 1.0) * _MAX_INT8)
    elif form.encoding == "binary":
        # 1 - 2 * Hamming distance / dimensions is the cosine of the signs.
        cut = np.where(cut > 0, 1.0, -1.0)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.where(norms > 0, norms, 1.0), dtype=np.float32)

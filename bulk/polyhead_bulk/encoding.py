"""Embeddings of a batch as they are stored: shortened and encoded, row by row what the server does.

``polyhead_server.serving.embeddings`` defines the encodings for one embedding; a test compares the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .options import Encoding

_MAX_INT8 = 127
_MAX_FLOAT16 = float(np.finfo(np.float16).max)
OVERFLOW = f"the embedding has a value beyond {_MAX_FLOAT16:g}, the largest of float16; request float32"


class Encoded(NamedTuple):
    """Encoded embeddings.

    Attributes:
        values: (B, width) stored numbers.
        scales: (B,) float32, factor of the integers of ``int8``; None for other encodings.
        overflow: (B,) whether a number is beyond the range of the encoding; None where that cannot happen.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    overflow: NDArray[np.bool_] | None = None


def shorten(values: NDArray[np.float32], dimensions: int, *, normalized: bool) -> NDArray[np.float32]:
    """Returns the leading numbers of each embedding.

    Args:
        values: (B, dimensions of the model).
        dimensions: Numbers to keep.
        normalized: Whether the model's embeddings have length 1; the shortened ones then have it again.
    """
    if dimensions == values.shape[1]:
        return values
    values = values[:, :dimensions]
    if not normalized:
        return values
    wide = values.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)  # (B, 1)
    # A zero vector has no direction and is left as it is.
    return (wide / np.where(norms == 0, 1, norms)).astype(np.float32)


def encode(values: NDArray[np.float32], encoding: Encoding) -> Encoded:
    """Encodes embeddings.

    Args:
        values: (B, dimensions) finite numbers.
        encoding: Type of the stored numbers.
    """
    if encoding == "float32":
        return Encoded(values)
    if encoding == "binary":
        return Encoded(np.packbits(values > 0, axis=1))
    largest = np.abs(values).max(axis=1)  # (B,)
    if encoding == "float16":
        overflow = largest > _MAX_FLOAT16
        return Encoded(np.where(overflow[:, None], 0, values).astype(np.float16), overflow=overflow)
    # In this order because 127 divided by a tiny number is infinite.
    steps = values / np.where(largest == 0, 1, largest)[:, None] * np.float32(_MAX_INT8)
    return Encoded(np.rint(steps).astype(np.int8), (largest.astype(np.float64) / _MAX_INT8).astype(np.float32))

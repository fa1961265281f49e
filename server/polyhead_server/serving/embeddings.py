"""Embeddings as they leave the server: shortened to the requested dimensions and encoded as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyhead_server.inference.types import Encoding

_MAX_INT8 = 127


def shorten(values: NDArray[np.float32], dimensions: int, *, normalized: bool) -> NDArray[np.float32]:
    """Returns the first dimensions of an embedding.

    Args:
        values: (dimensions of the model,).
        dimensions: Number of dimensions to keep; 0 for all.
        normalized: Whether the model's embeddings have length 1; the shortened one then has it again.
    """
    if not dimensions:
        return values
    values = values[:dimensions]
    # The remaining dimensions may all be zero; a zero vector has no direction and is left as it is.
    return values / np.float32(np.linalg.norm(values) or 1) if normalized else values


def encode_embedding(values: NDArray[np.float32], encoding: Encoding) -> tuple[bytes, float]:
    """Encodes an embedding as bytes.

    Args:
        values: (dimensions,) finite numbers.
        encoding: Layout of the bytes, as ``polyhead.v1.EmbeddingEncoding`` defines it.

    Returns:
        The bytes, and the scale of the integers for ``INT8``; the scale is 0 for the other layouts.
    """
    if encoding is Encoding.INT8:
        largest = float(np.abs(values).max())
        steps = np.rint(values * (_MAX_INT8 / largest)) if largest else values
        return steps.astype(np.int8).tobytes(), largest / _MAX_INT8
    if encoding is Encoding.BINARY:
        return np.packbits(values > 0).tobytes(), 0.0
    return values.astype("<f4" if encoding is Encoding.FLOAT32_LE else "<f2", copy=False).tobytes(), 0.0

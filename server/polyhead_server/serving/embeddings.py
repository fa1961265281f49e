"""Embeddings as they leave the server: shortened to the requested dimensions and encoded as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyhead_server.errors import EncodingOverflowError, ServerError
from polyhead_server.inference.types import Encoding, ItemOutcome

_FLOAT32_LE, _FLOAT16_LE = np.dtype("<f4"), np.dtype("<f2")
_MAX_INT8 = 127
_MAX_FLOAT16 = float(np.finfo(np.float16).max)


def shorten(values: NDArray[np.float32], dimensions: int, *, normalized: bool) -> NDArray[np.float32]:
    """Returns the first dimensions of an embedding.

    Args:
        values: (dimensions of the model,).
        dimensions: Number of dimensions to keep; 0 for all.
        normalized: Whether the model's embeddings have length 1; the shortened one then has it again.

    Returns:
        (dimensions,) numbers; ``values`` itself where nothing is cut off, so that each encoder returns the same bytes.
    """
    if dimensions in {0, len(values)}:
        return values
    values = values[:dimensions]
    if not normalized:
        return values
    # In float64 the squares of small numbers are not zero. The remaining dimensions may all be zero; a zero vector has
    # no direction and is left as it is.
    wide = values.astype(np.float64)
    return (wide / (np.linalg.norm(wide) or 1)).astype(np.float32)


def encodable(outcome: ItemOutcome, encoding: Encoding) -> ItemOutcome:
    """Returns the outcome, or an error if its embedding is beyond the range of the encoding."""
    if encoding is not Encoding.FLOAT16_LE or isinstance(outcome, ServerError):
        return outcome
    overflows = float(np.abs(outcome.output.embedding).max()) > _MAX_FLOAT16
    return EncodingOverflowError(_MAX_FLOAT16) if overflows else outcome


def encode_embedding(values: NDArray[np.float32], encoding: Encoding) -> tuple[bytes, float]:
    """Encodes an embedding as bytes.

    Args:
        values: (dimensions,) finite numbers.
        encoding: Layout of the bytes, as ``polyhead.v1.EmbeddingEncoding`` defines it.

    Returns:
        The bytes, and the scale of the integers for ``INT8``; the scale is 0 for the other layouts.

    Raises:
        EncodingOverflowError: The layout has no number that is large enough.
    """
    if encoding is Encoding.INT8:
        largest = float(np.abs(values).max())
        # In this order because 127 divided by a tiny number is infinite.
        steps = np.rint(values / np.float32(largest) * np.float32(_MAX_INT8)) if largest else values
        return steps.astype(np.int8).tobytes(), largest / _MAX_INT8
    if encoding is Encoding.FLOAT16_LE and float(np.abs(values).max()) > _MAX_FLOAT16:
        raise EncodingOverflowError(_MAX_FLOAT16)
    if encoding is Encoding.BINARY:
        return np.packbits(values > 0).tobytes(), 0.0
    return values.astype(_FLOAT32_LE if encoding is Encoding.FLOAT32_LE else _FLOAT16_LE, copy=False).tobytes(), 0.0

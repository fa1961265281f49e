from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from polyhead_bulk.encoding import encode, shorten
from polyhead_bulk.options import Encoding
from polyhead_server.errors import EncodingOverflowError
from polyhead_server.inference.types import Encoding as ServerEncoding
from polyhead_server.serving import embeddings as server

_SERVER = {
    "float32": (ServerEncoding.FLOAT32_LE, "<f4"),
    "float16": (ServerEncoding.FLOAT16_LE, "<f2"),
    "int8": (ServerEncoding.INT8, "i1"),
    "binary": (ServerEncoding.BINARY, "u1"),
}


def vectors() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    values = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
    values[3] = 0
    values[4] = 1e-30
    values[5] *= 1e30
    values[6, :7] = 0
    return values


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_every_row_has_the_bytes_that_the_server_sends(encoding: Encoding) -> None:
    values = vectors()
    encoded = encode(values, encoding)
    kind, dtype = _SERVER[encoding]
    compared = 0
    for row, one in enumerate(values):
        try:
            content, scale = server.encode_embedding(one, kind)
        except EncodingOverflowError:
            assert encoded.overflow is not None
            assert encoded.overflow[row]
            continue
        assert encoded.overflow is None or not encoded.overflow[row]
        np.testing.assert_array_equal(encoded.values[row], np.frombuffer(content, dtype))
        assert encoded.scales is None or encoded.scales[row] == np.float32(scale)
        compared += 1
    assert compared >= 59
    assert (encoded.scales is not None) == (encoding == "int8")


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dimensions", [7, 20])
def test_shortened_rows_are_those_of_the_server(dimensions: int, normalized: bool) -> None:
    values = vectors()
    expected = [server.shorten(one, dimensions, normalized=normalized) for one in values]
    np.testing.assert_allclose(shorten(values, dimensions, normalized=normalized), expected, rtol=1e-6)

"""Decompression of request messages."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest
from polyhead.v1 import inference_service_pb2
from polyhead_server.errors import InvalidRequestError, MessageTooLargeError
from polyhead_server.rpc.compression import inflate, is_compressed

MIB = 2**20
LIMIT = 16 * MIB
# Hexadecimal digits compress to half.
VARIED = random.Random(0).randbytes(MIB).hex().encode()
PACKED = gzip.compress(VARIED, 1)


@pytest.mark.parametrize(
    "message", [b"", b"\x0a\x00", b"a" * MIB, VARIED], ids=["empty", "small", "repetitive", "varied"]
)
def test_message_is_the_same_with_and_without_compression(message: bytes) -> None:
    assert inflate(message, LIMIT) == message
    assert inflate(gzip.compress(message), LIMIT) == message
    for level in range(10):
        assert inflate(zlib.compress(message, level), LIMIT) == message
    assert is_compressed(gzip.compress(message))
    assert not is_compressed(message)


def test_no_request_message_looks_compressed() -> None:
    requests = [
        one for name, one in inference_service_pb2.DESCRIPTOR.message_types_by_name.items() if "Request" in name
    ]
    assert len(requests) > 4
    # Tags of deflate's first bytes; see the module.
    assert all(15 not in request.fields_by_number for request in requests)


@pytest.mark.parametrize("size", [MIB + 1, LIMIT, 4 * LIMIT])
def test_message_that_expands_a_thousandfold_is_rejected(size: int) -> None:
    with pytest.raises(MessageTooLargeError):
        inflate(gzip.compress(bytes(size), 1), LIMIT)


def test_limit_of_the_server_counts_inflated_bytes() -> None:
    assert inflate(PACKED, len(VARIED)) == VARIED
    with pytest.raises(MessageTooLargeError):
        inflate(PACKED, len(VARIED) - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\x8b",
        b"\x1f\x8b" + b"x" * 100,
        PACKED[:-5],
        PACKED[:1000],
        gzip.compress(b"one") + gzip.compress(b"two"),
        gzip.compress(b"one") + b"rest",
    ],
    ids=["magic", "noise", "cut checksum", "cut", "two members", "trailing bytes"],
)
def test_damaged_message_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        inflate(data, LIMIT)
    assert caught.value.reason == "MALFORMED_MESSAGE"

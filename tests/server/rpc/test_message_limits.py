"""Large messages are checked before they are parsed."""

from __future__ import annotations

import time

import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.types import Item
from polyhead_server.rpc import message_limits
from polyhead_server.rpc.request_decoder import RequestDecoder

MAX_ITEMS = 1024
MEGABYTES = 16 * 2**20

EXPENSIVE = {
    "empty items": b"\x0a\x00" * (MEGABYTES // 2),
    "tasks": b"\x10\x01" * (MEGABYTES // 2),
    "packed tasks": b"\x12\x80\x80\x80\x04" + b"\x01" * 2**23,
    "unknown fields": b"\x98\x06\x01" * (MEGABYTES // 3),
    "group start tags": b"\x9b\x06" * (MEGABYTES // 2),
    "an item of unknown fields": b"\x0a\x80\x80\x80\x04" + b"\x98\x06\x01" * (2**23 // 3) + b"\x98\x06",
    "many items of unknown fields": (b"\x0a\x80\x80\x04" + b"\x98\x06\x01" * 21845 + b"\x0a") * 200,
}


@pytest.mark.parametrize("data", EXPENSIVE.values(), ids=EXPENSIVE.keys())
def test_expensive_message_is_rejected_before_it_is_parsed(data: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(InvalidRequestError):
        message_limits.check(data, MAX_ITEMS)
    # Parsing them takes 50 ms to 4 s.
    assert time.thread_time() - started < 0.05


@pytest.mark.parametrize(
    "request_",
    [
        pb2.AnalyzeRequest(items=[item_pb2.Item(item_id="1", text="long " * 3_000_000)]),
        pb2.AnalyzeRequest(
            items=[item_pb2.Item(item_id=str(n), text="t" * 16_000) for n in range(MAX_ITEMS)],
            tasks=[item_pb2.TASK_EMBEDDING],
        ),
        pb2.AnalyzeRequest(items=[item_pb2.Item()] * 1, tasks=[item_pb2.TASK_EMBEDDING] * 900),
    ],
    ids=["a long text", "the maximum number of items", "a small message"],
)
def test_message_of_a_usual_client_is_accepted(request_: pb2.AnalyzeRequest) -> None:
    message_limits.check(request_.SerializeToString(), MAX_ITEMS)


def test_large_field_of_another_protocol_is_accepted_only_as_raw_content() -> None:
    entries = b"\x12\x06\x0a\x04name" * (MEGABYTES // 8)
    message_limits.check_fields(b"\x3a" + length(entries) + entries, (5, 5, 8), MAX_ITEMS, raw_field=7)
    # One output with two million parameters.
    with pytest.raises(InvalidRequestError, match="bytes besides its texts"):
        message_limits.check_fields(b"\x32" + length(entries) + entries, (5, 5, 8), MAX_ITEMS, raw_field=7)


@pytest.mark.parametrize("end", [b"\xff", b"\x0a\xff", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x07"])
def test_invalid_protobuf_is_left_to_the_parser(end: bytes) -> None:
    whole = pb2.AnalyzeRequest(items=[item_pb2.Item(text="t" * 100_000)]).SerializeToString()
    message_limits.check(whole + end, MAX_ITEMS)


def test_unknown_fields_of_later_versions_are_accepted() -> None:
    item = item_pb2.Item(item_id="1", text="t" * 100_000).SerializeToString() + b"\x9a\x06\x03new" * 3
    data = b"\x0a" + length(item) + item + b"\x98\x06\x01" * 100
    (decoded,) = RequestDecoder(pb2.AnalyzeRequest, MAX_ITEMS)(data).items
    assert isinstance(decoded, Item)
    assert len(decoded.text) == 100_000


def length(data: bytes) -> bytes:
    remaining, out = len(data), bytearray()
    while remaining > 127:
        out.append(remaining & 127 | 128)
        remaining >>= 7
    return bytes([*out, remaining])

"""Serialized fields, compared with those of protobuf."""

from __future__ import annotations

from google.protobuf import wrappers_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from polyhead.v1 import item_pb2
from polyhead_server.rpc.wire_format import delimited, tag, varint


@given(st.integers(1, 2**64 - 1))
@example(127)
@example(128)
def test_integer_is_encoded_as_by_protobuf(value: int) -> None:
    field = tag(wrappers_pb2.UInt64Value.DESCRIPTOR, "value", "integer") + varint(value)
    assert field == wrappers_pb2.UInt64Value(value=value).SerializeToString()


@given(st.binary(min_size=1, max_size=300))
def test_bytes_are_encoded_as_by_protobuf(value: bytes) -> None:
    field = delimited(tag(wrappers_pb2.BytesValue.DESCRIPTOR, "value", "bytes"), value)
    assert field == wrappers_pb2.BytesValue(value=value).SerializeToString()


def test_messages_and_numbers_have_the_tags_of_their_types() -> None:
    assert tag(item_pb2.Result.DESCRIPTOR, "timings", "message") == b"\x42"
    assert tag(item_pb2.LabelScore.DESCRIPTOR, "probability", "float") == b"\x15"

"""The input tensor of the Open Inference Protocol: its shape, its content, and the parameters that clients send."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead_server.errors import InvalidRequestError
from polyhead_server.serving.open_inference_input import (
    check_parameters,
    element_count,
    split_bytes_tensor,
)


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_raw_content_is_split_into_what_was_joined(texts: list[bytes]) -> None:
    assert split_bytes_tensor(raw(*texts), len(texts)) == texts


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_split_or_refused(data: bytes, count: int) -> None:
    try:
        texts = split_bytes_tensor(data, count)
    except InvalidRequestError:
        return
    assert raw(*texts) == data
    assert len(texts) == count


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (raw(b"ab")[:-1], 1, "gives element 0 2 bytes, and 1 are left"),
        (raw(b"ab") + b"\1", 2, "ends before element 1 of 2"),
        (raw(b"ab", b"c"), 1, "has 5 bytes after its 1 elements"),
        (b"\xff\xff\xff\xff", 1, "4294967295 bytes, and 0 are left"),
    ],
)
def test_wrong_length_prefix_is_named(data: bytes, count: int, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        split_bytes_tensor(data, count)


@pytest.mark.parametrize("shape", [[], [-1], [1, 3], [3, 1, 1], [1] * 1000])
def test_any_other_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match=r"send \[n,1\] or \[n\]") as caught:
        element_count(shape)
    assert len(str(caught.value)) < 200


def test_too_many_elements_are_refused_by_the_shape_alone() -> None:
    assert element_count([8, 1], 8) == 8
    with pytest.raises(InvalidRequestError, match="has 9 elements; at most 8 are allowed"):
        element_count([9, 1], 8)


@pytest.mark.parametrize(
    ("parameters", "raw_bytes"),
    [
        ({"binary_data_size": 7}, 7),  # KServe's client, over gRPC too
        ({"content_type": "str"}, None),  # MLServer's codec of strings
        ({"content_type": "str", "headers": None}, None),  # MLServer's types, as JSON
        ({"content_type": None, "binary_data_size": 0}, 0),
    ],
)
def test_parameters_that_clients_send_by_themselves_are_accepted(
    parameters: dict[str, Any], raw_bytes: int | None
) -> None:
    check_parameters(parameters, raw_bytes)


@pytest.mark.parametrize(
    ("parameters", "raw_bytes", "message"),
    [
        ({"binary_data_size": 8}, 7, "binary_data_size of the input tensor is '8', its raw content has 7 bytes"),
        ({"binary_data_size": "x" * 1000}, 7, "its raw content has 7 bytes"),
        ({"binary_data_size": True}, 1, "is 'True'"),
        ({"binary_data_size": 7}, None, "both elements and binary_data_size"),
        ({"content_type": "base64"}, None, "content_type of the input tensor is 'base64'; send texts"),
        ({"content_type": {}}, None, "send texts, whose content_type is str"),
        ({"shared_memory_region": "a"}, None, "'shared_memory_region' of the input tensor is not supported"),
    ],
)
def test_parameter_that_would_change_the_meaning_is_refused(
    parameters: dict[str, Any], raw_bytes: int | None, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        check_parameters(parameters, raw_bytes)
    assert len(str(caught.value)) < 250

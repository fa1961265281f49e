"""The input of the Open Inference Protocol: one tensor of texts, of datatype BYTES and shape [n,1] or [n]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyhead_server.errors import InvalidRequestError

# What MLServer's codecs call texts in UTF-8; its other content types would mean another decoding.
CONTENT_TYPES = {"str": "str"}
_BINARY_SIZE = "binary_data_size"


def check_parameters(parameters: Mapping[str, Any], raw_bytes: int | None) -> None:
    """Checks the parameters of the input tensor, which clients send by themselves.

    Args:
        parameters: KServe's client sends ``binary_data_size``, MLServer's codecs ``content_type``.
        raw_bytes: Size of the tensor's raw content; None if its elements came one by one.

    Raises:
        InvalidRequestError: A parameter contradicts the tensor or is not known.
    """
    for name, value in parameters.items():
        if value is None or (name == "content_type" and value == "str"):
            continue
        if name == _BINARY_SIZE:
            if raw_bytes is None:
                problem = f"the input tensor has both elements and {_BINARY_SIZE}; use one of them"
                raise InvalidRequestError("INVALID_TENSOR", problem)
            if value != raw_bytes or isinstance(value, bool):
                problem = (
                    f"{_BINARY_SIZE} of the input tensor is {shown(str(value))}, its raw content has {raw_bytes} bytes"
                )
                raise InvalidRequestError("INVALID_TENSOR", problem)
        elif name == "content_type":
            problem = f"content_type of the input tensor is {shown(str(value))}; send texts, whose content_type is str"
            raise InvalidRequestError("INVALID_TENSOR", problem)
        else:
            problem = (
                f"parameter {shown(name)} of the input tensor is not supported, nor is shared memory; "
                "send the texts in the request"
            )
            raise InvalidRequestError("UNKNOWN_PARAMETER", problem)


def split_bytes_tensor(raw: bytes, count: int) -> list[bytes]:
    """Splits the raw content of a BYTES tensor into its elements, each preceded by its length.

    Args:
        raw: For each element its length as little-endian uint32, and its bytes.
        count: Number of elements according to the tensor's shape.

    Raises:
        InvalidRequestError: The lengths do not add up to the content, or there are more or fewer elements.
    """
    return list(_elements(raw, count))


def _elements(raw: bytes, count: int) -> Iterator[bytes]:
    at = 0
    for index in range(count):
        begin = at + 4
        if begin > len(raw):
            raise _mismatch(f"ends before element {index} of {count}")
        at = begin + int.from_bytes(raw[at:begin], "little")
        if at > len(raw):
            raise _mismatch(f"gives element {index} {at - begin} bytes, and {len(raw) - begin} are left")
        yield raw[begin:at]
    if at < len(raw):
        raise _mismatch(f"has {len(raw) - at} bytes after its {count} elements")


def _mismatch(problem: str) -> InvalidRequestError:
    hint = "each element of a BYTES tensor is its length as little-endian uint32 followed by its bytes"
    return InvalidRequestError("INVALID_TENSOR", f"the raw content of the input tensor {problem}; {hint}")


def element_count(shape: Sequence[int], max_items: int | None = None) -> int:
    """Returns the number of texts of an input tensor of this shape.

    Args:
        shape: The tensor's.
        max_items: Maximum number of texts, so that no more are split; None to leave it to the caller.

    Raises:
        InvalidRequestError: The shape is neither [n] nor [n,1], or there are too many texts.
    """
    if (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) and shape[0] >= 0:
        if max_items is not None and shape[0] > max_items:
            raise too_many_elements(shape[0], max_items)
        return shape[0]
    shown = f"{list(shape)}" if len(shape) <= 8 else f"of {len(shape)} dimensions"
    raise InvalidRequestError("INVALID_TENSOR", f"the input tensor has shape {shown}; send [n,1] or [n] for n texts")


def too_many_elements(count: int, max_items: int) -> InvalidRequestError:
    """Returns the error of an input tensor with more texts than a request may have."""
    problem = f"the input tensor has {count} elements; at most {max_items} are allowed"
    return InvalidRequestError("TOO_MANY_ITEMS", problem)


def require_datatype(datatype: str) -> None:
    """Rejects an input that is not a tensor of texts.

    Raises:
        InvalidRequestError: ``INVALID_TENSOR``.
    """
    if datatype != "BYTES":
        problem = f"the input tensor has datatype {shown(datatype)}; send the texts as datatype BYTES"
        raise InvalidRequestError("INVALID_TENSOR", problem)


def shown(text: str) -> str:
    """Returns a client's text in a form that is short and safe to print."""
    return ascii(text[:64])

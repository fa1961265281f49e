"""Serialized protobuf fields (https://protobuf.dev/programming-guides/encoding).

The fields of a message may be serialized one by one: their concatenation is the message.
"""

from __future__ import annotations

import functools

from google.protobuf.descriptor import Descriptor

_VARINT, _DELIMITED, _FIXED32 = 0, 2, 5
_TYPES = {"bytes": _DELIMITED, "message": _DELIMITED, "float": _FIXED32, "integer": _VARINT}


def tag(message: Descriptor, field: str, kind: str) -> bytes:
    """Returns the tag of a field, which stands before its value.

    Args:
        message: The message type.
        field: Name of the field.
        kind: ``bytes`` (strings too), ``message``, ``float`` or ``integer``.
    """
    return varint(message.fields_by_name[field].number << 3 | _TYPES[kind])


# Most values are the lengths of fields, of which a model's answers have few different ones.
@functools.lru_cache(maxsize=8192)
def varint(value: int) -> bytes:
    """Returns an integer that is not negative."""
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(tag_bytes: bytes, value: bytes) -> bytes:
    """Returns a field of bytes, of a string or of a message."""
    return tag_bytes + varint(len(value)) + value

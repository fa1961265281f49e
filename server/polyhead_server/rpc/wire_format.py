"""Serialized protobuf fields (https://protobuf.dev/programming-guides/encoding).

The fields of a message may be serialized one by one: their concatenation is the message.
"""

from __future__ import annotations

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


def varint(value: int) -> bytes:
    """Returns an integer that is not negative."""
    if value < 128:
        return _BYTES[value]
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(tag_bytes: bytes, value: bytes) -> bytes:
    """Returns a field of bytes, of a string or of a message."""
    return tag_bytes + varint(len(value)) + value


_BYTES = [bytes((value,)) for value in range(128)]

"""Rejects request messages that would be expensive to parse, before they are parsed.

A message of 16 MiB may hold millions of two-byte fields. Parsing it would block the event loop, and with it every
client, for seconds. So the fields of large messages are counted first, and counting stops at the first limit exceeded.
"""

from __future__ import annotations

from collections.abc import Iterator

from polyhead_server.errors import InvalidRequestError, TooManyItemsError

# Messages up to this size parse within a few milliseconds whatever they contain.
_SMALL_BYTES = 64 * 2**10
# Limit for everything besides the items: tasks and options need a few dozen bytes, and later versions add little.
_MAX_OTHER_BYTES = 64 * 2**10
# Minimum number of bytes charged for a field: locating a field costs as much as copying this many bytes.
_MIN_FIELD_BYTES = 64
# An item has two fields; later versions may add some.
_MAX_ITEM_FIELDS = 8
# Number of the field ``items`` in every request message.
_ITEMS_FIELD = 1


def check(data: bytes, max_items: int) -> None:
    """Checks a serialized request message. Bytes that are not protobuf are left to the parser.

    Args:
        data: The message as received.
        max_items: Maximum number of items in a message.

    Raises:
        InvalidRequestError: It has too many items, or too many fields or bytes besides them.
    """
    if len(data) <= _SMALL_BYTES:
        return
    try:
        _check(data, max_items)
    except IndexError:
        return


def _check(data: bytes, max_items: int) -> None:
    items = other_bytes = 0
    for number, begin, end in _fields(data, 0, len(data)):
        if number != _ITEMS_FIELD:
            other_bytes += max(end - begin, _MIN_FIELD_BYTES)
        else:
            items += 1
            for count, _ in enumerate(_fields(data, begin, end), 1):
                if count > _MAX_ITEM_FIELDS:
                    raise InvalidRequestError("MALFORMED_MESSAGE", f"an item has more than {_MAX_ITEM_FIELDS} fields")
        if items > max_items:
            raise TooManyItemsError(max_items, "are allowed")
        if other_bytes > _MAX_OTHER_BYTES:
            problem = f"the message has more than {_MAX_OTHER_BYTES} bytes besides its items"
            raise InvalidRequestError("MALFORMED_MESSAGE", problem)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields field number and begin and end of the value (https://protobuf.dev/programming-guides/encoding)."""
    while at < end:
        tag, at = _varint(data, at)
        match tag & 7:  # the wire type
            case 0:
                begin, (_, at) = at, _varint(data, at)
            case 1:
                begin, at = at, at + 8
            case 2:
                length, begin = _varint(data, at)
                at = begin + length
            case 5:
                begin, at = at, at + 4
            case _:
                # A group's start or end tag, whose fields follow like any others; or not protobuf at all.
                begin = at
        yield tag >> 3, begin, min(at, end)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decodes a varint of at most 10 bytes; returns it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError("not a valid varint")

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


def check_fields(data: bytes, path: tuple[int, ...], max_items: int, raw_field: int) -> None:
    """Checks a serialized message of another protocol, whose texts are the elements of one nested field.

    Args:
        data: The message as received.
        path: Numbers of the fields that lead to the texts; each but the last is a message.
        max_items: Maximum number of texts.
        raw_field: Number of the outermost message's field that holds the raw content of a tensor, of any size.

    Raises:
        InvalidRequestError: It has too many texts, or too many other fields.
    """
    if len(data) <= _SMALL_BYTES:
        return
    try:
        _NestedFields(path, max_items, raw_field).check(data, 0, len(data), 0)
    except IndexError:
        return


class _NestedFields:
    """Counts the fields of a message down to those that hold texts."""

    def __init__(self, path: tuple[int, ...], max_items: int, raw_field: int) -> None:
        self._path = path
        self._max_items = max_items
        self._raw_field = raw_field
        self._texts = self._tensors = self._other_bytes = 0

    def check(self, data: bytes, at: int, end: int, depth: int) -> None:
        for number, begin, stop in _fields(data, at, end):
            if number != self._path[depth]:
                self._count_other(0 if not depth and number == self._raw_field else stop - begin)
            elif depth == len(self._path) - 1:
                self._texts += 1
                if self._texts > self._max_items:
                    raise InvalidRequestError("TOO_MANY_ITEMS", f"the message has more than {self._max_items} texts")
            else:
                self._tensors += 1
                if self._tensors > _MAX_ITEM_FIELDS:
                    raise InvalidRequestError("MALFORMED_MESSAGE", "the message has too many tensors")
                self.check(data, begin, stop, depth + 1)

    def _count_other(self, size: int) -> None:
        self._other_bytes += max(size, _MIN_FIELD_BYTES)
        if self._other_bytes > _MAX_OTHER_BYTES:
            problem = f"the message has more than {_MAX_OTHER_BYTES} bytes besides its texts"
            raise InvalidRequestError("MALFORMED_MESSAGE", problem)

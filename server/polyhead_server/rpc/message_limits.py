"""What a large message would cost to parse, found out before anything is parsed.

A message of 16 MiB may hold millions of fields of two bytes, and parsing it would hold up the event loop, and everybody
with it, for seconds. So the fields of large messages are counted first, which stops as soon as there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator

from polyhead_server.errors import InvalidRequestError

# Smaller messages are parsed in a few milliseconds whatever they hold.
_SMALL_BYTES = 64 * 2**10
# Everything besides the items: tasks and options take a few dozen bytes, and what later versions may add not much more.
_BESIDES_BYTES = 64 * 2**10
# A field counts as so many bytes at least, for finding it costs as much as copying them.
_FIELD_BYTES = 64
# An item has two fields; later versions may add some.
_ITEM_FIELDS = 8
_ITEMS_FIELD = 1


def check(data: bytes, max_items: int) -> None:
    """Refuses a large message that has the form of a costly one; what is no message at all is left to the parser.

    Raises:
        InvalidRequestError: It has too many items, or too much besides.
    """
    if len(data) <= _SMALL_BYTES:
        return
    try:
        _check(data, max_items)
    except IndexError:
        return


def _check(data: bytes, max_items: int) -> None:
    items = besides = 0
    for number, begin, end in _fields(data, 0, len(data)):
        if number != _ITEMS_FIELD:
            besides += max(end - begin, _FIELD_BYTES)
        else:
            items += 1
            for count, _ in enumerate(_fields(data, begin, end), 1):
                if count > _ITEM_FIELDS:
                    raise InvalidRequestError("MALFORMED_MESSAGE", f"an item has more than {_ITEM_FIELDS} fields")
        if items > max_items:
            raise InvalidRequestError("TOO_MANY_ITEMS", f"the message has more than {max_items} items")
        if besides > _BESIDES_BYTES:
            problem = f"the message has more than {_BESIDES_BYTES} bytes besides its items"
            raise InvalidRequestError("MALFORMED_MESSAGE", problem)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the value of each field (https://protobuf.dev/programming-guides/encoding)."""
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
                # Begin and end of a group, whose fields come like any other; or no protobuf at all.
                begin = at
        yield tag >> 3, begin, min(at, end)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 10 bytes, and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError("no protobuf number")

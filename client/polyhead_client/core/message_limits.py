"""What fits one message: of items before they are sent, and of what a server refuses. No I/O.

A server says so in GetModelInfo too; but asking costs every client a call, which not every key may make.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from polyhead.v1 import item_pb2

from polyhead_client.errors import PolyheadError
from polyhead_client.types import ItemError

# The server's default limit for one message, and this client's for what it sends.
MAX_MESSAGE_BYTES = 16 * 2**20
# What a message holds beside its items (tasks, options) stays far below 1 KiB.
_MAX_ITEM_BYTES = MAX_MESSAGE_BYTES - 1024
# How gRPC says that a message has more bytes than its receiver takes, in C, Python and Go.
_OVERSIZE = "larger than max"


@dataclass
class MessageLimits:
    """Limits that are known so far. All calls of a client share one.

    Threads may overwrite each other's: a limit that is lost is learned again.

    Attributes:
        items: In one message.
        size_bytes: Of one message, about.
    """

    items: int = sys.maxsize
    size_bytes: int = sys.maxsize

    def halve_items(self, items: int) -> None:
        """Takes in that a message of so many items, of more than one, was refused."""
        self.items = min(self.items, items // 2)

    def halve_bytes(self, size_bytes: int) -> None:
        """Takes in that a message of so many bytes was refused."""
        self.size_bytes = min(self.size_bytes, size_bytes // 2)


def has_too_many_items(error: PolyheadError) -> bool:
    """Whether the server says that a message has more items than it takes."""
    return error.reason == "TOO_MANY_ITEMS"


def has_too_many_bytes(error: PolyheadError) -> bool:
    """Whether gRPC says that a message has more bytes than the server takes."""
    return error.code == "RESOURCE_EXHAUSTED" and _OVERSIZE in error.message


def item_of(number: int, text: str) -> item_pb2.Item | ItemError:
    """The item on the wire, or why it cannot be sent. The reasons are those that a server has for the same."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"text is not valid UTF-8: {error.reason} at code point {error.start}"
        return ItemError("INVALID_ARGUMENT", "TEXT_NOT_UTF8", problem)
    item = item_pb2.Item(item_id=str(number), text=text)
    if item.ByteSize() > _MAX_ITEM_BYTES:
        return too_large(item, f"a message carries {_MAX_ITEM_BYTES}")
    return item


def too_large(item: item_pb2.Item, problem: str) -> ItemError:
    """The error of an item that is too large for any message."""
    return ItemError("INVALID_ARGUMENT", "ITEM_TOO_LARGE", f"the item has {item.ByteSize()} bytes; {problem}")

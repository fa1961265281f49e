"""Message limits: which items fit into a message, and what the server's rejections reveal about its limits. No I/O.

GetModelInfo reports the same limits, but it would cost every client an extra call, which not every API key may make.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from polyhead.v1 import item_pb2

from polyhead_client.errors import PolyheadError
from polyhead_client.types import ItemError

# The server's default limit for one message, and this client's limit for the messages that it sends.
MAX_MESSAGE_BYTES = 16 * 2**20
# The rest of a message (tasks, options) stays far below 1 KiB.
_MAX_ITEM_BYTES = MAX_MESSAGE_BYTES - 1024
# Part of gRPC's error for a message that exceeds the receiver's limit in bytes; equal in C, Python and Go.
_OVERSIZE = "larger than max"


@dataclass
class MessageLimits:
    """The server's limits as far as they are known. All calls of a client share one object.

    Updates are not locked: a limit that is lost to a concurrent update is found again.

    Attributes:
        max_items: Items in one message.
        max_bytes: Approximate bytes in one message.
    """

    max_items: int = sys.maxsize
    max_bytes: int = sys.maxsize

    def halve_items(self, items: int) -> None:
        """Lowers the limit after a message of ``items`` > 1 items was rejected."""
        self.max_items = min(self.max_items, items // 2)

    def halve_bytes(self, size_bytes: int) -> None:
        """Lowers the limit after a message of ``size_bytes`` bytes was rejected."""
        self.max_bytes = min(self.max_bytes, size_bytes // 2)


def has_too_many_items(error: PolyheadError) -> bool:
    """Whether the server rejected a message because of its number of items."""
    return error.reason == "TOO_MANY_ITEMS"


def has_too_many_bytes(error: PolyheadError) -> bool:
    """Whether gRPC rejected a message because of its size in bytes."""
    return error.code == "RESOURCE_EXHAUSTED" and _OVERSIZE in error.message


def encode_item(number: int, text: str) -> item_pb2.Item | ItemError:
    """Builds the item on the wire, or the error if it cannot be sent, with the reason that a server would give."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"text is not valid UTF-8: {error.reason} at code point {error.start}"
        return ItemError("INVALID_ARGUMENT", "TEXT_NOT_UTF8", problem)
    item = item_pb2.Item(item_id=str(number), text=text)
    if item.ByteSize() > _MAX_ITEM_BYTES:
        return too_large_error(item, f"the limit of a message is {_MAX_ITEM_BYTES}")
    return item


def too_large_error(item: item_pb2.Item, problem: str) -> ItemError:
    """Builds the error of an item that exceeds every message limit."""
    return ItemError("INVALID_ARGUMENT", "ITEM_TOO_LARGE", f"the item has {item.ByteSize()} bytes; {problem}")

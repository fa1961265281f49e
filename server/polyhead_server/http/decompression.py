"""Compressed request bodies, decompressed in bounded parts while they come."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from polyhead_server.errors import InvalidRequestError

# Size of a part. A small body may expand a thousandfold; the reader counts the parts and stops at its own limit.
MAX_PART_BYTES = 64 * 2**10
# zlib's window sizes, which also select the format: gzip, or zlib, which HTTP calls deflate.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


def decompressed(parts: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Returns the parts of a body without its content encoding.

    Args:
        parts: The body as it comes.
        encoding: The header ``content-encoding``; empty or ``identity`` returns the parts as they are.

    Raises:
        InvalidRequestError: The encoding is not supported or, while the parts are read, the body is damaged.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return parts
    if name not in _WINDOW_BITS:
        problem = f"header content-encoding is {name[:64]!a}; send gzip, deflate, or a body without it"
        raise InvalidRequestError("INVALID_PARAMETER", problem)
    return _inflated(parts, name)


async def _inflated(parts: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    member = zlib.decompressobj(_WINDOW_BITS[name])
    try:
        async for part in parts:
            rest = part
            while rest:
                if member.eof:
                    # gzip files may consist of several members.
                    member = zlib.decompressobj(_WINDOW_BITS[name])
                if data := member.decompress(rest, MAX_PART_BYTES):
                    yield data
                    # A part may expand for a long time; other calls continue meanwhile.
                    await asyncio.sleep(0)
                rest = member.unconsumed_tail or member.unused_data
        while data := member.decompress(b"", MAX_PART_BYTES):
            yield data
    except zlib.error:
        raise InvalidRequestError("MALFORMED_MESSAGE", f"the body is not valid {name}") from None
    if not member.eof:
        raise InvalidRequestError("MALFORMED_MESSAGE", f"the body ends within its {name} content")

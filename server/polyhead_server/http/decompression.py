"""Compressed request bodies, decompressed in bounded parts while they come."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from polyhead_server.errors import InvalidRequestError

# Size of a part. A small body may expand a thousandfold; the reader counts the parts and stops at its own limit.
MAX_PART_BYTES = 64 * 2**10
# A part is inflated in slices of this size, so that each of many members copies little of what follows it.
_SLICE_BYTES = 16 * 2**10
# Members of a gzip body, and the compressed bytes for each further one: a member costs time even if it is empty.
_FREE_MEMBERS, _BYTES_PER_MEMBER = 1000, 512
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
    members = size = 0
    try:
        async for part in parts:
            size += len(part)
            for begin in range(0, len(part), _SLICE_BYTES):
                rest = part[begin : begin + _SLICE_BYTES]
                while rest:
                    if member.eof:
                        # gzip files may consist of several members.
                        member = zlib.decompressobj(_WINDOW_BITS[name])
                        members += 1
                        if members > _FREE_MEMBERS + size / _BYTES_PER_MEMBER:
                            raise InvalidRequestError("MALFORMED_MESSAGE", f"the body has too many {name} members")
                    if data := member.decompress(rest, MAX_PART_BYTES):
                        yield data
                        # A part may expand for a long time; other calls continue meanwhile.
                        await asyncio.sleep(0)
                    rest = member.unconsumed_tail or member.unused_data
                await asyncio.sleep(0)
        while data := member.decompress(b"", MAX_PART_BYTES):
            yield data
    except zlib.error:
        raise InvalidRequestError("MALFORMED_MESSAGE", f"the body is not valid {name}") from None
    if not member.eof:
        raise InvalidRequestError("MALFORMED_MESSAGE", f"the body ends within its {name} content")

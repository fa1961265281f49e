"""Decompression of request messages, bounded by what they cost their sender.

gRPC itself would inflate a message up to the size limit before the server knows whether the caller may call at all.
The server switches that off (see ``server_options``) and inflates here, after the caller was authorized.
"""

from __future__ import annotations

import zlib

from polyhead_server.errors import InvalidRequestError, MessageTooLargeError

# First bytes of gzip, and of deflate at each compression level. No request message begins with them: the first would be
# a tag with the wire type 7, which does not exist, the others one of field 15, which no request message has.
_MAGIC = (b"\x1f\x8b", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")
# zlib's code for either framing.
_ANY_FRAMING = 47
# A message may always inflate to this size, and beyond it to this multiple of its compressed size. Texts compress to a
# third or a tenth; only repetition compresses further.
_MIN_LIMIT_BYTES = 2**20
_MAX_RATIO = 32
_DAMAGED = "the compressed message is damaged"


def is_compressed(data: bytes) -> bool:
    """Whether a message is compressed with gzip or deflate, the algorithms of gRPC."""
    return data.startswith(_MAGIC)


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Returns the message, inflated if it is compressed.

    Args:
        data: The message as received.
        max_bytes: Maximum size of an inflated message.

    Raises:
        InvalidRequestError: Its compression is damaged.
        MessageTooLargeError: It inflates to more than the maximum, or to too large a multiple of its size.
    """
    if not is_compressed(data):
        return data
    limit = min(max_bytes, max(_MIN_LIMIT_BYTES, _MAX_RATIO * len(data)))
    inflater = zlib.decompressobj(_ANY_FRAMING)
    try:
        message = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise InvalidRequestError("MALFORMED_MESSAGE", _DAMAGED) from None
    if len(message) > limit:
        raise MessageTooLargeError(
            f"the message inflates to more than {limit} bytes, the limit for its compressed size; send a smaller or an "
            "uncompressed message"
        )
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequestError("MALFORMED_MESSAGE", _DAMAGED)
    return message

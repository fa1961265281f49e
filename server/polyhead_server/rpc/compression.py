"""Decompression of request messages, bounded by what they cost their sender.

gRPC itself would inflate a message up to the size limit before the server knows whether the caller may call at all.
The server switches that off (see ``server_options``) and inflates here, after the caller was authorized.
"""

from __future__ import annotations

import zlib

from polyhead_server.errors import InvalidRequestError, MessageTooLargeError

# No protobuf message begins with these bytes: they would be a tag with the wire type 7, which does not exist.
_GZIP_MAGIC = b"\x1f\x8b"
# zlib's code for gzip framing.
_GZIP_FRAMING = 31
# A message may always inflate to this size, and beyond it to this multiple of its compressed size. Texts compress to a
# third or a tenth; only repetition compresses further.
_MIN_LIMIT_BYTES = 2**20
_MAX_RATIO = 32


def is_compressed(data: bytes) -> bool:
    """Whether a message is compressed with gzip, the only algorithm that the server offers."""
    return data.startswith(_GZIP_MAGIC)


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Returns the message, inflated if it is compressed.

    Args:
        data: The message as received.
        max_bytes: Maximum size of an inflated message.

    Raises:
        InvalidRequestError: It is not valid gzip.
        MessageTooLargeError: It inflates to more than the maximum, or to too large a multiple of its size.
    """
    if not is_compressed(data):
        return data
    limit = min(max_bytes, max(_MIN_LIMIT_BYTES, _MAX_RATIO * len(data)))
    inflater = zlib.decompressobj(_GZIP_FRAMING)
    try:
        message = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise InvalidRequestError("MALFORMED_MESSAGE", "the message is not valid gzip") from None
    if len(message) > limit:
        raise MessageTooLargeError(
            f"the message inflates to more than {limit} bytes, the limit for its compressed size; send a smaller or an "
            "uncompressed message"
        )
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequestError("MALFORMED_MESSAGE", "the message is not valid gzip")
    return message

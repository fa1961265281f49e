"""Texts as they arrive on any wire: bytes or strings of strangers, decoded into items of the pipeline."""

from __future__ import annotations

import codecs
import functools

from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.types import InvalidItem, Item

_decode_utf8 = codecs.utf_8_decode


def item_from_bytes(item_id: str, text: bytes, max_bytes: int) -> Item | InvalidItem:
    """Makes an item of a text, of which only as much is decoded as the model may read.

    Args:
        item_id: The id.
        text: UTF-8; any other text becomes an invalid item.
        max_bytes: How many bytes to decode; the rest is ignored.
    """
    try:
        # A cut may split a character; with final=False the decoder ignores the incomplete rest.
        decoded, _ = _decode_utf8(text[:max_bytes], "strict", len(text) <= max_bytes)
    except UnicodeDecodeError as error:
        return InvalidItem(item_id, _not_utf8(error.reason, error.start))
    return Item(item_id, decoded)


def item_from_string(item_id: str, text: str, max_characters: int) -> Item | InvalidItem:
    """Makes an item of a decoded string, such as one of a JSON document.

    JSON can escape half of a surrogate pair, which is no character and has no encoding: an invalid item.
    """
    # One more code point detects truncation.
    text = text[: max_characters + 1]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InvalidItem(item_id, _unpaired_surrogate(error.start))
    return Item(item_id, text)


# One error for all texts with the same mistake, because making an error costs more than sending one.
@functools.lru_cache(maxsize=4096)
def _not_utf8(reason: str, position: int) -> InvalidRequestError:
    return InvalidRequestError("TEXT_NOT_UTF8", f"text is not valid UTF-8: {reason} at byte {position}")


@functools.lru_cache(maxsize=4096)
def _unpaired_surrogate(position: int) -> InvalidRequestError:
    return InvalidRequestError("TEXT_NOT_UTF8", f"text contains an unpaired surrogate at code point {position}")

"""Texts as they arrive on any wire: bytes or strings of strangers, decoded into items of the pipeline."""

from __future__ import annotations

import codecs

from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.types import InvalidItem, Item

_decode_utf8 = codecs.utf_8_decode


def decode_text(text: bytes, max_bytes: int) -> str:
    """Decodes as much of a text as the model may read.

    Args:
        text: UTF-8.
        max_bytes: How many bytes to decode; the rest is ignored.

    Raises:
        InvalidRequestError: ``TEXT_NOT_UTF8``.
    """
    try:
        # A cut may split a character; with final=False the decoder ignores the incomplete rest.
        decoded, _ = _decode_utf8(text[:max_bytes], "strict", len(text) <= max_bytes)
    except UnicodeDecodeError as error:
        problem = f"text is not valid UTF-8: {error.reason} at byte {error.start}"
        raise InvalidRequestError("TEXT_NOT_UTF8", problem) from None
    return decoded


def item_from_bytes(item_id: str, text: bytes, max_bytes: int) -> Item | InvalidItem:
    """Makes an item of a text; one that is not UTF-8 becomes an invalid item."""
    try:
        return Item(item_id, decode_text(text, max_bytes))
    except InvalidRequestError as error:
        return InvalidItem(item_id, error)


def item_from_string(item_id: str, text: str, max_characters: int) -> Item | InvalidItem:
    """Makes an item of a decoded string, such as one of a JSON document.

    JSON can escape half of a surrogate pair, which is no character and has no encoding.
    """
    text = text[: max_characters + 1]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"text contains an unpaired surrogate at code point {error.start}"
        return InvalidItem(item_id, InvalidRequestError("TEXT_NOT_UTF8", problem))
    return Item(item_id, text)

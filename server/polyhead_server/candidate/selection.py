"""Which texts or callers belong to a share: by their hash, so that every process and every run decides alike."""

from __future__ import annotations

import hashlib

# Bits of a float's mantissa: more would round up to 1.
_BITS = 53


def place_of(key: str) -> float:
    """Returns the place of a key between 0 (included) and 1 (excluded); places of many keys are evenly distributed."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(digest) >> (64 - _BITS)) / 2**_BITS)


def is_selected(key: str, share: float) -> bool:
    """Returns whether a key belongs to a share, 0 to 1. A larger share contains every smaller one."""
    return place_of(key) < share

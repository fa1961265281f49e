"""Texts that occur more than once: in a split, and across splits, where they make an evaluation look better than it is.

::

    text --normalize--> letters and digits --equal--> exact duplicates
                                           --MinHash, locality-sensitive hashing, Jaccard--> near duplicates
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Signatures = NDArray[np.uint64]

# Share of their 5-grams that two near duplicates have in common.
NEAR = 0.8
_GRAM = 5
# 8 bands of 4 hashes find 98 % of the pairs at a similarity of 0.8 and 20 % at 0.4 (Leskovec, Rajaraman, Ullman: Mining
# of Massive Datasets, section 3.4).
_BANDS, _ROWS = 8, 4
# Texts whose signatures are computed at once.
_CHUNK = 4096
# More texts than this in a bucket have a phrase in common, not a source.
_MAX_BUCKET = 64
_MULTIPLIER = 0x9E3779B97F4A7C15


def normalize(text: str) -> str:
    """A text without case, accents and anything but letters and digits, as words with one space between them."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", bare))


def groups(texts: Sequence[str]) -> list[list[int]]:
    """The numbers of normalised texts that are equal, for those that occur more than once; empty texts never are."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        if text:
            places[text].append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def exact_pairs(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """For each text of the second list that is also in the first, its first place there and its own."""
    places: dict[str, int] = {}
    for number, text in enumerate(first):
        places.setdefault(text, number)
    return [(places[text], number) for number, text in enumerate(second) if text and text in places]


def near_pairs(
    first: Sequence[str], second: Sequence[str], hashes: tuple[Signatures, Signatures]
) -> list[tuple[int, int]]:
    """For each text of the second list that has a near but no exact duplicate in the first, one such pair.

    Of many texts that are made from one template some may be missed.

    Args:
        first: N normalised texts.
        second: M normalised texts.
        hashes: Their ``signatures``.
    """
    exact = set(first)
    candidates: dict[int, set[int]] = defaultdict(set)
    for band in range(_BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for number, key in enumerate(hashes[1][:, band].tolist()):
            if key and second[number] not in exact:
                buckets[key].append(number)
        sizes: dict[int, int] = defaultdict(int)
        for number, key in enumerate(hashes[0][:, band].tolist()):
            if key in buckets and sizes[key] < _MAX_BUCKET:
                sizes[key] += 1
                for other in buckets[key][:_MAX_BUCKET]:
                    candidates[other].add(number)
    found = []
    for other in sorted(candidates):
        match = next((number for number in sorted(candidates[other]) if _alike(first[number], second[other])), None)
        found += [] if match is None else [(match, other)]
    return found


def signatures(texts: Sequence[str]) -> Signatures:
    """(N, bands) uint64 hashes of normalised texts; two that share one are candidates; 0 for texts that are too short.

    A band is a hash of the smallest of each of its permutations of the text's 5-grams (Broder 1997).
    """
    parts = [_signatures(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, _BANDS), np.uint64)


def _signatures(texts: Sequence[str]) -> Signatures:
    encoded = [text.encode() for text in texts]
    long = [number for number, content in enumerate(encoded) if len(content) >= _GRAM]
    bands = np.zeros((len(texts), _BANDS), np.uint64)
    if not long:
        return bands
    grams = [_gram_hashes(np.frombuffer(encoded[number], np.uint8).astype(np.uint64)) for number in long]
    starts = np.cumsum([0, *(len(hashes) for hashes in grams[:-1])])
    every = np.concatenate(grams)
    mixed = np.zeros((len(long), _BANDS), np.uint64)
    for permutation in range(_BANDS * _ROWS):
        salted = _scramble(every ^ np.uint64(_MULTIPLIER * (permutation + 1) % 2**64))
        smallest = np.minimum.reduceat(salted, starts)
        band = permutation // _ROWS
        mixed[:, band] = _scramble(mixed[:, band] ^ smallest)
    bands[long] = mixed | np.uint64(1)
    return bands


def _gram_hashes(content: Signatures) -> Signatures:
    """A number for each run of 5 bytes: they fit into one, side by side."""
    count = len(content) - _GRAM + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(_GRAM):
        hashes = (hashes << np.uint64(8)) | content[place : place + count]
    return hashes


def _scramble(values: Signatures) -> Signatures:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), a permutation of 64-bit numbers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _alike(first: str, second: str) -> bool:
    one, other = set(_grams(first)), set(_grams(second))
    return len(one & other) >= NEAR * len(one | other)


def _grams(text: str) -> Iterator[bytes]:
    content = text.encode()
    return (content[place : place + _GRAM] for place in range(len(content) - _GRAM + 1))

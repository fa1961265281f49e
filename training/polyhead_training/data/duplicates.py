"""Duplicate texts within a split and across splits, where they inflate evaluation scores.

::

    text --normalize--> letters and digits --equal--> exact duplicates
                                           --MinHash, locality-sensitive hashing, Jaccard--> near duplicates

MinHash is vectorized here, which is several times faster than datasketch; docs/decisions/0010-libraries-and-own-code.md
compares the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from polyhead_training.tokenization import chunks

Signatures = NDArray[np.uint64]

# Smallest Jaccard similarity of the 5-gram sets of two near duplicates.
MIN_SIMILARITY = 0.8
_GRAM_BYTES = 5
# 8 bands of 4 hashes find 98 % of the pairs at a similarity of 0.8 and 20 % at 0.4 (Leskovec, Rajaraman, Ullman: Mining
# of Massive Datasets, section 3.4).
_BANDS, _ROWS = 8, 4
# Texts and characters whose signatures are computed in one vectorized call; it takes about 40 bytes per character.
_CHUNK_TEXTS = 4096
_CHUNK_CHARACTERS = 4 * 2**20
# Texts in a larger bucket share a phrase, not an origin.
_MAX_BUCKET_TEXTS = 64
_MULTIPLIER = 0x9E3779B97F4A7C15


def normalize(text: str) -> str:
    """Reduces a text to lower-case words of letters and digits without accents, separated by single spaces."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", plain))


def groups(texts: Sequence[str]) -> list[list[int]]:
    """Groups the numbers of equal normalized texts that occur more than once; empty texts never form a group."""
    positions: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        if text:
            positions[text].append(number)
    return [numbers for numbers in positions.values() if len(numbers) > 1]


def exact_pairs(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs each text of ``second`` that also occurs in ``first`` with its first occurrence there: (first, second)."""
    positions: dict[str, int] = {}
    for number, text in enumerate(first):
        positions.setdefault(text, number)
    return [(positions[text], number) for number, text in enumerate(second) if text and text in positions]


def near_pairs(
    first: Sequence[str], second: Sequence[str], hashes: tuple[Signatures, Signatures]
) -> list[tuple[int, int]]:
    """Pairs each text of ``second`` that has a near but no exact duplicate in ``first`` with one: (first, second).

    Some pairs may be missed among many texts that follow one template.

    Args:
        first: N normalized texts.
        second: M normalized texts.
        hashes: Results of ``signatures`` for both.
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
            if key in buckets and sizes[key] < _MAX_BUCKET_TEXTS:
                sizes[key] += 1
                for other in buckets[key][:_MAX_BUCKET_TEXTS]:
                    candidates[other].add(number)
    found = []
    for other in sorted(candidates):
        match = next((number for number in sorted(candidates[other]) if _near(first[number], second[other])), None)
        found += [] if match is None else [(match, other)]
    return found


def duplicate_sets(texts: Sequence[str]) -> list[int]:
    """Assigns each text the number of its set of duplicates, exact and near, those of duplicates included.

    Args:
        texts: N texts, not normalized.

    Returns:
        For each text, the smallest number of a text in its set; its own for a text without duplicates.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes a second to import

    normalized = [normalize(text) for text in texts]
    sets = DisjointSet(range(len(texts)))
    for numbers in groups(normalized):
        for number in numbers[1:]:
            sets.merge(numbers[0], number)
    for bands in signatures(normalized).T.tolist():
        buckets: dict[int, list[int]] = defaultdict(list)
        for number, key in enumerate(bands):
            others = buckets[key][:_MAX_BUCKET_TEXTS] if key else []
            for other in others:
                if not sets.connected(other, number) and _near(normalized[other], normalized[number]):
                    sets.merge(other, number)
            buckets[key].append(number)
    smallest: dict[int, int] = {}
    for found in sets.subsets():
        smallest |= dict.fromkeys(found, min(found))
    return [smallest[number] for number in range(len(texts))]


def signatures(texts: Sequence[str]) -> Signatures:
    """Computes (N, bands) uint64 MinHash signatures of normalized texts.

    Two texts with an equal band are candidates for near duplicates. A band hashes the minimum of the text's 5-gram
    hashes under each of its permutations (Broder 1997); it is 0 for texts shorter than a 5-gram.
    """
    parts = [_signatures(chunk) for chunk in chunks(texts, _CHUNK_TEXTS, _CHUNK_CHARACTERS)]
    return np.concatenate(parts) if parts else np.zeros((0, _BANDS), np.uint64)


def _signatures(texts: Sequence[str]) -> Signatures:
    encoded = [text.encode() for text in texts]
    long = [number for number, content in enumerate(encoded) if len(content) >= _GRAM_BYTES]
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
    """Packs each run of 5 bytes into a 64-bit integer."""
    count = len(content) - _GRAM_BYTES + 1
    hashes = np.zeros(count, np.uint64)
    for start in range(_GRAM_BYTES):
        hashes = (hashes << np.uint64(8)) | content[start : start + count]
    return hashes


def _scramble(values: Signatures) -> Signatures:
    """Applies the finalizer of splitmix64 (Steele, Lea, Flood 2014), a permutation of the 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _near(first: str, second: str) -> bool:
    grams, other_grams = set(_grams(first)), set(_grams(second))
    return len(grams & other_grams) >= MIN_SIMILARITY * len(grams | other_grams)


def _grams(text: str) -> Iterator[bytes]:
    content = text.encode()
    return (content[start : start + _GRAM_BYTES] for start in range(len(content) - _GRAM_BYTES + 1))

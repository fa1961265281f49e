"""Samples: texts with the answers that the served model gave, as packets from serving processes to the candidate's.

A packet is a fixed struct, the text, the name of its prompt, and the numbers of the answer: the embedding and each
head's probabilities, little-endian float32. Each packet carries the totals of its sender, so that nothing that was
dropped goes uncounted.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, error
from typing import NamedTuple

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.inference.head_answers import numbers_of
from polyhead_server.inference.types import ModelOutput

# Larger packets do not fit into the buffer of a socket.
MAX_PACKET_BYTES = 128 * 2**10
_VERSION = 1
_HEADER = Struct("<HH32sQQQQqqIIHHI")


class SampleError(Exception):
    """A packet is not valid."""


class Totals(NamedTuple):
    """Counts of one sender since it began.

    Attributes:
        sender: Number that no other sender has.
        answered: Texts that the served model has answered.
        selected: Those of them that belong to the share.
        dropped: Those of the selected ones that were not sent: the candidate had not read enough before, or the text
            was too long.
    """

    sender: int
    answered: int
    selected: int
    dropped: int


class Sample(NamedTuple):
    """A text and its answer.

    Attributes:
        digest: SHA-256 of the manifest of the model that answered.
        text: The text without its prompt.
        prompt: Name of its prompt; empty for none.
        max_windows: Largest number of windows in which it was read.
        total_ns: Time from the arrival of its message to its answer.
        compute_ns: Duration of its batch; 0 for an answer from the cache.
        batch_items: Texts of that batch.
        values: Bytes of the numbers.
    """

    digest: bytes
    text: str
    prompt: str
    max_windows: int
    total_ns: int
    compute_ns: int
    batch_items: int
    values: bytes


def values_of(output: ModelOutput) -> bytes:
    """Returns the numbers of an answer as a sample holds them."""
    return b"".join([part.astype("<f4", copy=False).tobytes() for part in (output.embedding, *output.probabilities)])


def split_values(values: bytes, manifest: bundle.Manifest) -> list[NDArray[np.float32]]:
    """Divides the numbers of a sample.

    Returns:
        The embedding (dimensions,), and the probabilities of each head (numbers,).

    Raises:
        SampleError: There are more or fewer numbers than the model of the manifest gives.
    """
    sizes = [manifest.embedding.dimensions, *map(numbers_of, manifest.heads)]
    if len(values) != 4 * sum(sizes):
        raise SampleError(f"{len(values)} bytes for {sum(sizes)} numbers")
    numbers: NDArray[np.float32] = np.frombuffer(values, dtype="<f4")
    return np.split(numbers, np.cumsum(sizes)[:-1])


def encode(sample: Sample, totals: Totals) -> bytes:
    """Encodes a packet."""
    text, prompt = sample.text.encode("utf-8", "surrogatepass"), sample.prompt.encode()
    header = _HEADER.pack(
        _VERSION,
        0,
        sample.digest,
        *totals,
        sample.total_ns,
        sample.compute_ns,
        sample.batch_items,
        len(text),
        len(prompt),
        sample.max_windows,
        len(sample.values),
    )
    return b"".join((header, text, prompt, sample.values))


def decode(packet: bytes) -> tuple[Sample, Totals]:
    """Decodes a packet.

    Raises:
        SampleError: It is not valid.
    """
    try:
        version, _, digest, *numbers = _HEADER.unpack_from(packet)
        *totals, total_ns, compute_ns, batch_items, text_bytes, prompt_bytes, max_windows, value_bytes = numbers
        parts = _cut(packet, (_HEADER.size, text_bytes, prompt_bytes, value_bytes))
        text, prompt = parts[1].decode("utf-8", "surrogatepass"), parts[2].decode()
    except (error, UnicodeDecodeError) as reason:
        raise SampleError(str(reason)) from reason
    if version != _VERSION:
        raise SampleError(f"a packet of version {version}")
    sample = Sample(digest, text, prompt, max_windows, total_ns, compute_ns, batch_items, parts[3])
    return sample, Totals._make(totals)


def _cut(packet: bytes, sizes: Sequence[int]) -> list[bytes]:
    if len(packet) != sum(sizes):
        raise SampleError(f"a packet of {len(packet)} bytes instead of {sum(sizes)}")
    parts, begin = [], 0
    for size in sizes:
        parts.append(packet[begin : begin + size])
        begin += size
    return parts

"""Records of the rings between a front and the engine process: fixed structs, followed by an array or a text.

::

    front -> engine   ADMIT      sizes of a message's texts; may they be queued?
                      PUT        token ids of a text or of a window of one
                      TOKENIZED  so many texts of a message are in the queue or gone; LAST ends the message
                      CANCEL     the answer of an entry is not wanted any more
                      END_FLOW   a stream has ended
                      READY      this front has loaded a model
    engine -> front   ADMITTED   so many texts of a stream's message may be queued
                      REFUSED    the texts of a unary call from here on are refused, or the message came too late
                      RESULT     numbers of an entry
                      FAILED     error of an entry
                      CAPACITY   a stream may send again
                      SERVE      the number of the model that answers from now on

All numbers are little-endian. Times are ``time.monotonic_ns()``, which all processes of a machine share; -1 is none.
A reader checks every length before it reads, and a record that is not valid ends the connection.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_server.inference.types import ModelOutput, Timings

# A message of a million texts, or all numbers of a text.
MAX_RECORD_BYTES = 16 * 2**20
MAX_ITEMS = 1_000_000

NONE_NS = -1

_HEADER = Struct("<IHH")
_ADMIT = Struct("<QQqI4x")
_PUT = Struct("<QQqqqIII")
_TOKENIZED = Struct("<QI4x")
_NUMBER = Struct("<Q")
_ADMITTED = Struct("<QI4x")
_REFUSED = Struct("<QId4x")
_RESULT = Struct("<QqqqII")


class RecordError(Exception):
    """The other process has sent a record that is not valid."""


class Kind(enum.IntEnum):
    """Kinds of records."""

    ADMIT = 1
    PUT = 2
    TOKENIZED = 3
    CANCEL = 4
    END_FLOW = 5
    READY = 6
    ADMITTED = 16
    REFUSED = 17
    RESULT = 18
    FAILED = 19
    CAPACITY = 20
    SERVE = 21


class Flag:
    """Flags of ``ADMIT``, ``PUT``, ``TOKENIZED`` and ``ADMITTED``; plain numbers, which are combined much faster."""

    NONE = 0
    UNARY = 1
    BLOCKING = 2
    LAST = 4
    CAPACITY = 8


class Failure(enum.IntEnum):
    """Why texts are refused or fail."""

    EXPIRED = 1
    OVERLOADED = 2
    INTERNAL = 3
    # The model that the front has tokenized for does not answer any more.
    STALE = 4


class Record(NamedTuple):
    """A record as it was read."""

    kind: int
    flags: int
    body: bytes


class Admit(NamedTuple):
    """``sizes`` are estimated tokens, one for each text."""

    message: int
    flow: int
    deadline_ns: int
    model: int
    sizes: Sequence[int]


class Put(NamedTuple):
    """``item`` is the index of the text in its message; ``ids`` are unsigned 32-bit integers.

    ``seen`` is the number of tokens of the whole text; 0 for a window that is not its first.
    """

    entry: int
    flow: int
    deadline_ns: int
    arrived_ns: int
    tokenized_ns: int
    model: int
    item: int
    seen: int
    ids: bytes


class Tokenized(NamedTuple):
    """Ends the reservations of so many texts of a message."""

    message: int
    texts: int


class Admitted(NamedTuple):
    """The first ``texts`` texts of a stream's message may be queued."""

    message: int
    texts: int


class Refused(NamedTuple):
    """The texts from this index on are refused. ``text`` is the message of an ``OVERLOADED`` error."""

    message: int
    texts: int
    retry_after_s: float
    text: str


class Numbers(NamedTuple):
    """``values`` are the bytes of the embedding, of each head's logits and of each head's probabilities."""

    entry: int
    queue_ns: int
    compute_ns: int
    finished_ns: int
    batch_items: int
    batch_tokens: int
    values: bytes


class Failed(NamedTuple):
    """``incident`` is that of an ``INTERNAL`` error."""

    entry: int
    incident: str


class RecordReader:
    """Divides the bytes of a ring into records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yields the records that are complete with ``data``.

        Raises:
            RecordError: A length is not valid.
        """
        data = self._rest + data if self._rest else data
        position, size = 0, len(data)
        self._rest = b""
        while size - position >= _HEADER.size:
            length, kind, flags = _HEADER.unpack_from(data, position)
            if not _HEADER.size <= length <= MAX_RECORD_BYTES:
                raise RecordError(f"a record of {length} bytes")
            if size - position < length:
                break
            yield Record(kind, flags, data[position + _HEADER.size : position + length])
            position += length
        self._rest = data[position:]


def admit(flags: int, record: Admit) -> bytes:
    """Encodes an ``ADMIT`` record."""
    return _encode(Kind.ADMIT, flags, _ADMIT.pack(*record[:4]) + array("I", record.sizes).tobytes())


def put(flags: int, record: Put) -> bytes:
    """Encodes a ``PUT`` record."""
    return _encode(Kind.PUT, flags, _PUT.pack(*record[:8]) + record.ids)


def tokenized(flags: int, record: Tokenized) -> bytes:
    """Encodes a ``TOKENIZED`` record."""
    return _encode(Kind.TOKENIZED, flags, _TOKENIZED.pack(*record))


def number(kind: Kind, value: int) -> bytes:
    """Encodes a record that consists of one number: ``CANCEL``, ``END_FLOW``, ``READY``, ``CAPACITY``, ``SERVE``."""
    return _encode(kind, 0, _NUMBER.pack(value))


def admitted(flags: int, record: Admitted) -> bytes:
    """Encodes an ``ADMITTED`` record."""
    return _encode(Kind.ADMITTED, flags, _ADMITTED.pack(*record))


def refused(failure: Failure, record: Refused) -> bytes:
    """Encodes a ``REFUSED`` record."""
    return _encode(Kind.REFUSED, failure, _REFUSED.pack(*record[:3]) + record.text.encode())


def result(entry: int, output: ModelOutput, timings: Timings) -> bytes:
    """Encodes a ``RESULT`` record."""
    parts = (output.embedding, *output.logits, *output.probabilities)
    body = _RESULT.pack(
        entry,
        timings.queue_ns,
        timings.compute_ns,
        timings.finished_ns,
        timings.batch_items,
        timings.batch_tokens,
    )
    return _encode(Kind.RESULT, 0, b"".join((body, *[part.tobytes() for part in parts])))


def failed(failure: Failure, record: Failed) -> bytes:
    """Encodes a ``FAILED`` record."""
    return _encode(Kind.FAILED, failure, _NUMBER.pack(record.entry) + record.incident.encode())


def read_admit(body: bytes) -> Admit:
    """Decodes an ``ADMIT`` record; raises ``RecordError``."""
    return Admit._make((*_head(_ADMIT, body), _unsigned(body[_ADMIT.size :])))


def read_put(body: bytes) -> Put:
    """Decodes a ``PUT`` record; raises ``RecordError``."""
    ids = body[_PUT.size :]
    if len(ids) % 4:
        raise RecordError(f"token ids of {len(ids)} bytes")
    return Put._make((*_head(_PUT, body), ids))


def read_tokenized(body: bytes) -> Tokenized:
    """Decodes a ``TOKENIZED`` record; raises ``RecordError``."""
    return Tokenized(*_head(_TOKENIZED, body))


def read_number(body: bytes) -> int:
    """Decodes a record of one number; raises ``RecordError``."""
    (value,) = _head(_NUMBER, body)
    return int(value)


def read_admitted(body: bytes) -> Admitted:
    """Decodes an ``ADMITTED`` record; raises ``RecordError``."""
    return Admitted(*_head(_ADMITTED, body))


def read_refused(body: bytes) -> Refused:
    """Decodes a ``REFUSED`` record; raises ``RecordError``."""
    message, texts, retry_after_s = _head(_REFUSED, body)
    if not math.isfinite(retry_after_s):
        raise RecordError("a retry after an infinite time")
    return Refused(message, texts, retry_after_s, body[_REFUSED.size :].decode(errors="replace"))


def read_numbers(body: bytes) -> Numbers:
    """Decodes a ``RESULT`` record; raises ``RecordError``."""
    return Numbers._make((*_head(_RESULT, body), body[_RESULT.size :]))


def read_failed(body: bytes) -> Failed:
    """Decodes a ``FAILED`` record; raises ``RecordError``."""
    return Failed(read_number(body), body[_NUMBER.size :].decode(errors="replace"))


def token_ids(ids: bytes) -> array[int]:
    """Returns token ids as an array."""
    found = array("I")
    found.frombytes(ids)
    return found


def split_output(values: bytes, sizes: Sequence[int], heads: int) -> ModelOutput:
    """Divides the numbers of a text into the parts of the model's output.

    Args:
        values: Bytes of all parts.
        sizes: Number of values of each part: the embedding, each head's logits, each head's probabilities.
        heads: Number of heads.

    Raises:
        RecordError: There are more or fewer numbers.
    """
    if len(values) != 4 * sum(sizes):
        raise RecordError(f"{len(values)} bytes for {sum(sizes)} numbers")
    numbers: NDArray[np.float32] = np.frombuffer(values, dtype="<f4")
    parts: list[NDArray[np.float32]] = []
    begin = 0
    for size in sizes:
        parts.append(numbers[begin : begin + size])
        begin += size
    return ModelOutput(parts[0], tuple(parts[1 : heads + 1]), tuple(parts[heads + 1 :]))


def _encode(kind: Kind, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags) + body


def _head(form: Struct, body: bytes) -> Any:
    if len(body) < form.size:
        raise RecordError(f"a body of {len(body)} bytes")
    return form.unpack_from(body)


def _unsigned(data: bytes) -> array[int]:
    if len(data) % 4 or len(data) > 4 * MAX_ITEMS:
        raise RecordError(f"an array of {len(data)} bytes")
    return token_ids(data)

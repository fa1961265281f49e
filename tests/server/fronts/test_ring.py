from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from polyhead_server.fronts.ring import RingError, RingReader, RingWriter

SIZE = 64


class Pair:
    """Both ends of a ring of 64 bytes."""

    def __init__(self) -> None:
        self.data_fd, self.space_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        memory = memoryview(bytearray(SIZE))
        self.writer = RingWriter(memory, self.data_fd, self.space_fd)
        self.reader = RingReader(memory, self.data_fd, self.space_fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    os.close(pair.data_fd)
    os.close(pair.space_fd)


def test_bytes_come_out_in_order_whatever_the_sizes(pair: Pair) -> None:
    chance = random.Random(1)
    sent, received = bytearray(), bytearray()
    for _ in range(500):
        data = chance.randbytes(chance.randrange(100))
        sent += data
        pair.writer.write(data)
        received += pair.reader.read(chance.randrange(1, 80))
        pair.writer.on_space()
    while data := pair.reader.read(SIZE):
        received += data
        pair.writer.on_space()
    assert received == sent
    assert pair.writer.backlog_bytes == 0


def test_what_does_not_fit_is_kept(pair: Pair) -> None:
    pair.writer.write(b"a" * SIZE)
    pair.writer.write(b"b" * 10)
    assert pair.writer.backlog_bytes == 10
    assert pair.reader.read(SIZE) == b"a" * SIZE
    assert pair.reader.read(SIZE) == b""
    pair.writer.on_space()
    assert pair.writer.backlog_bytes == 0
    assert pair.reader.read(SIZE) == b"b" * 10


def test_a_read_leaves_what_is_beyond_its_limit(pair: Pair) -> None:
    pair.writer.write(b"abcdef")
    assert pair.reader.read(4) == b"abcd"
    assert pair.reader.available == 2
    assert pair.reader.read(4) == b"ef"
    assert pair.reader.available == 0


@pytest.mark.parametrize("claimed", [SIZE + 1, 2**40])
def test_a_writer_cannot_claim_more_than_the_ring_holds(pair: Pair, claimed: int) -> None:
    os.eventfd_write(pair.data_fd, claimed)
    with pytest.raises(RingError, match="more was written"):
        pair.reader.read(SIZE)


def test_a_reader_cannot_claim_more_than_was_written(pair: Pair) -> None:
    pair.writer.write(b"abc")
    os.eventfd_write(pair.space_fd, 4)
    with pytest.raises(RingError, match="more was read"):
        pair.writer.on_space()

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest
from polyhead_server.fronts import records
from polyhead_server.fronts.records import Failure, Flag, Kind, Record, RecordError, RecordReader
from polyhead_server.inference.types import ModelOutput, Timings

IDS = array("I", [2, 70_000, 2**32 - 1]).tobytes()
ADMIT = records.Admit(2**60, 7, -1, 3, array("I", [5, 9]))
PUT = records.Put(2**60, 7, 10**18, 1, 2, 3, 4, 5, IDS)
OUTPUT = ModelOutput(
    np.asarray([0.5, -1e-30], dtype=np.float32),
    (np.asarray([1, 2, 3], dtype=np.float32), np.asarray([-4], dtype=np.float32)),
    (np.asarray([0.2, 0.3, 0.5], dtype=np.float32), np.asarray([1], dtype=np.float32)),
)
TIMINGS = Timings(0, 11, 12, 0, 13, 14, 15)


def only(data: bytes) -> Record:
    (record,) = RecordReader().feed(data)
    return record


def test_records_are_read_as_they_were_written() -> None:
    admit = only(records.admit(Flag.BLOCKING, ADMIT))
    assert (admit.kind, admit.flags, records.read_admit(admit.body)) == (Kind.ADMIT, Flag.BLOCKING, ADMIT)
    put = only(records.put(Flag.UNARY, PUT))
    assert (put.kind, put.flags, records.read_put(put.body)) == (Kind.PUT, Flag.UNARY, PUT)
    assert list(records.token_ids(PUT.ids)) == [2, 70_000, 2**32 - 1]
    tokenized = records.Tokenized(5, 6)
    assert records.read_tokenized(only(records.tokenized(Flag.LAST, tokenized)).body) == tokenized
    admitted = records.Admitted(5, 6)
    assert records.read_admitted(only(records.admitted(Flag.CAPACITY, admitted)).body) == admitted
    refused = records.Refused(5, 6, 0.25, "the queue is full")
    record = only(records.refused(Failure.OVERLOADED, refused))
    assert (record.flags, records.read_refused(record.body)) == (Failure.OVERLOADED, refused)
    failed = records.Failed(5, "0123456789ab")
    assert records.read_failed(only(records.failed(Failure.INTERNAL, failed)).body) == failed
    assert records.read_number(only(records.number(Kind.SERVE, 9)).body) == 9


def test_numbers_keep_every_bit() -> None:
    numbers = records.read_numbers(only(records.result(42, OUTPUT, TIMINGS)).body)
    assert numbers[:6] == (42, 11, 12, 15, 13, 14)
    found = records.split_output(numbers.values, [2, 3, 1, 3, 1], heads=2)
    for one, other in zip(
        (found.embedding, *found.logits, *found.probabilities),
        (OUTPUT.embedding, *OUTPUT.logits, *OUTPUT.probabilities),
        strict=True,
    ):
        assert one.tobytes() == other.tobytes()
    assert (len(found.logits), len(found.probabilities)) == (2, 2)


def test_numbers_of_another_model_are_refused() -> None:
    with pytest.raises(RecordError, match="numbers"):
        records.split_output(b"\0" * 40, [2, 3, 1, 3], heads=2)


def test_records_are_found_whatever_pieces_they_come_in() -> None:
    data = records.put(0, PUT) + records.number(Kind.CANCEL, 1) + records.admit(0, ADMIT)
    for size in (1, 7, 8, 9, len(data)):
        reader = RecordReader()
        found: list[Record] = []
        for begin in range(0, len(data), size):
            found += reader.feed(data[begin : begin + size])
        assert [record.kind for record in found] == [Kind.PUT, Kind.CANCEL, Kind.ADMIT]
        assert records.read_put(found[0].body) == PUT


@pytest.mark.parametrize("length", [0, 7, records.MAX_RECORD_BYTES + 1, 2**32 - 1])
def test_an_invalid_length_is_refused(length: int) -> None:
    with pytest.raises(RecordError, match="a record of"):
        list(RecordReader().feed(struct.pack("<IHH", length, Kind.PUT, 0)))


@pytest.mark.parametrize(
    "read",
    [
        records.read_admit,
        records.read_put,
        records.read_tokenized,
        records.read_number,
        records.read_admitted,
        records.read_refused,
        records.read_numbers,
        records.read_failed,
    ],
)
def test_a_body_that_is_too_short_is_refused(read: object) -> None:
    for size in (0, 3, 7):
        with pytest.raises(RecordError):
            read(b"\0" * size)  # type: ignore[operator]


def test_arrays_of_odd_sizes_are_refused() -> None:
    put = only(records.put(0, PUT)).body
    with pytest.raises(RecordError, match="token ids"):
        records.read_put(put + b"\0")
    admit = only(records.admit(0, ADMIT)).body
    with pytest.raises(RecordError, match="an array"):
        records.read_admit(admit + b"\0\0")


def test_an_infinite_time_is_refused() -> None:
    for seconds in (float("nan"), float("inf")):
        body = only(records.refused(Failure.OVERLOADED, records.Refused(1, 0, seconds, ""))).body
        with pytest.raises(RecordError, match="infinite"):
            records.read_refused(body)

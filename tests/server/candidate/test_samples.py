"""Packets of samples."""

from __future__ import annotations

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.candidate.samples import Sample, SampleError, Totals, decode, encode, split_values, values_of
from polyhead_server.inference.types import ModelOutput

TOTALS = Totals(7, 30, 20, 10)


def sample(text: str = "grüße", values: bytes = b"12345678") -> Sample:
    return Sample(b"\x01" * 32, text, "query", 4, 1000, 500, 2, values)


@pytest.mark.parametrize("text", ["", "grüße 🙂", "\ud800", "long " * 10_000])
def test_packet_is_read_as_it_was_written(text: str) -> None:
    assert decode(encode(sample(text), TOTALS)) == (sample(text), TOTALS)


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_packet_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(SampleError):
        decode(encode(sample(), TOTALS)[:cut])


def test_packet_of_another_version_is_refused() -> None:
    with pytest.raises(SampleError, match="version 9"):
        decode(b"\x09\x00" + encode(sample(), TOTALS)[2:])


def test_numbers_are_split_by_the_heads(manifest: bundle.Manifest) -> None:
    parts = [np.array(values, np.float32) for values in ([1, 2], [0.1, 0.2, 0.7], [0.9])]
    output = ModelOutput(parts[0], (), tuple(parts[1:]))
    assert [part.tolist() for part in split_values(values_of(output), manifest)] == [part.tolist() for part in parts]
    with pytest.raises(SampleError, match="6 numbers"):
        split_values(values_of(output)[4:], manifest)

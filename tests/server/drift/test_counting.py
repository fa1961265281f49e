"""Measures of a bundle, and the counts of texts for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.drift.counting import Counter, Rows
from polyhead_server.drift.measures import measures_of, slices

from tests.support import small_bundle
from tests.support.drift_reference import EVERY_KIND, FAKE

NOVELTY = bundle.Novelty(2, (1.0,), 0.5, tuple(map(float, range(101))))
MANIFEST = dataclasses.replace(small_bundle.EVERY_KIND, reference=EVERY_KIND, novelty=NOVELTY)


def counted(rows: Rows, manifest: bundle.Manifest = MANIFEST) -> dict[tuple[str, str], list[float]]:
    measures = measures_of(manifest)
    counts = Counter(manifest, measures).count(rows)
    return {(one.head, one.name): counts[place].tolist() for one, place in slices(measures)}


def test_bundle_without_reference_has_no_measures() -> None:
    assert measures_of(small_bundle.MANIFEST) == ()


def test_measures_are_those_of_the_reference() -> None:
    found = {(one.head, one.name): one for one in measures_of(MANIFEST)}
    assert list(found) == [
        *(("topic", "answers"), ("topic", "confidence"), ("sentiment", "answers"), ("sentiment", "confidence")),
        *(("tags", "answers"), ("stars", "answers"), ("stars", "confidence"), ("price", "answers")),
        *(("", "tokens"), ("", "truncated"), ("", "unknown_tokens"), ("", "novelty"), ("", "embedding")),
    ]
    assert found["topic", "answers"].bins == ("app", "billing", "support")
    assert found["price", "answers"].bins == ("to 10", "10 to")
    assert found["", "tokens"].bins == ("1 to 4", "5 to 8", "9 to 16", "17 and more")
    assert found["topic", "confidence"].bins[-1] == "0.9 to 1"
    assert all(len(one.reference) == len(one.bins) or one.name == "embedding" for one in found.values())
    without = dataclasses.replace(MANIFEST, novelty=None, reference=dataclasses.replace(EVERY_KIND, embedding_mean=()))
    assert {one.name for one in measures_of(without)} & {"novelty", "embedding"} == set()


def test_texts_are_counted_for_every_kind_of_head() -> None:
    rows = Rows(
        {
            "topic": np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]),
            "sentiment": np.array([[0.9], [0.2]]),
            "tags": np.array([[0.5, 0.1, 0.8], [0.6, 0.3, 0.1]]),
            "stars": np.array([[0.1, 0.1, 0.6, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 1.0]]),
            "price": np.array([[0.5], [10.0]]),
        },
        np.array([4, 17]),
        np.array([False, True]),
        (19, 2),
        np.array([[1.0, 2.0], [3.0, 5.0]], np.float32),
        np.array([0.05, 1.0]),
    )
    found = counted(rows)
    assert found["topic", "answers"] == [1, 0, 1]
    assert found["topic", "confidence"] == [0] * 6 + [1, 1, 0, 0]
    assert found["sentiment", "answers"] == [1, 1]
    # That of the negative label is 0.8.
    assert found["sentiment", "confidence"] == [0] * 8 + [1, 1]
    assert found["tags", "answers"] == [2, 1, 1, 2]
    assert found["stars", "answers"] == [0, 0, 1, 0, 1]
    # A value at an edge belongs above it, as in training.
    assert found["price", "answers"] == [1, 1]
    assert found["", "tokens"] == [1, 0, 0, 1]
    assert found["", "truncated"] == [1, 1]
    assert found["", "unknown_tokens"] == [17, 2]
    assert found["", "novelty"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found["", "embedding"] == [4, 7, 2]


def test_what_is_unknown_is_not_counted() -> None:
    found = counted(Rows({}, np.array([3]), np.array([False])))
    assert found["", "tokens"] == [1, 0, 0, 0]
    for measure in (("topic", "answers"), ("", "unknown_tokens"), ("", "novelty"), ("", "embedding")):
        assert not any(found[measure])


@pytest.mark.parametrize(("tokens", "place"), [(1, 0), (4, 0), (5, 1), (16, 2), (17, 3), (100_000, 3)])
def test_lengths_are_divided_as_in_the_reference(tokens: int, place: int) -> None:
    assert FAKE.tokens == (0.25, 0.5, 0.25)
    assert counted(Rows({}, np.array([tokens]), np.array([False])))["", "tokens"].index(1) == place

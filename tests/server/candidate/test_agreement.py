"""Counts of agreement: the same as the comparison of two bundles on a file of texts computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from polyhead_bundle import Head
from polyhead_export.compare.agreement import embedding_agreement, head_agreement
from polyhead_server.candidate import agreement
from polyhead_server.candidate.agreement import EmbeddingCounts, HeadCounts, heads_in_both
from polyhead_server.candidate.report import Example, HeadComparison
from polyhead_server.inference.postprocessing import probabilities

from tests.support.small_bundle import EVERY_KIND, MANIFEST

TEXTS = 200


def logits(head: Head, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(TEXTS, head.width)).astype(np.float32)


def count(
    served: Head, candidate: Head, one: NDArray[np.float32], two: NDArray[np.float32], keep: int = 0
) -> HeadComparison:
    counts = HeadCounts(served, candidate, keep)
    for row, (old, new) in enumerate(zip(probabilities(served, one), probabilities(candidate, two), strict=True)):
        counts.add(f"text {row}", old, new)
    return counts.report()


def matrix(found: HeadComparison) -> list[list[int]]:
    filled = np.zeros((len(found.rows), len(found.columns)), np.int64)
    for row, column, texts in found.cells:
        filled[row, column] = texts
    return filled.tolist()


def changed_head(head: Head) -> Head:
    """The head with another calibration, so that some answers change."""
    thresholds = head.thresholds and tuple(value / 2 for value in head.thresholds)
    threshold = 0.7 if head.threshold else None
    temperature = head.temperature if head.kind == "regression" else head.temperature * 2
    return replace(head, temperature=temperature, threshold=threshold, thresholds=thresholds)


@pytest.mark.parametrize("head", EVERY_KIND.heads, ids=lambda head: head.kind)
def test_counts_are_those_of_the_offline_comparison(head: Head) -> None:
    other = changed_head(head)
    one, two = logits(head, 1), logits(head, 2)
    found, expected = count(head, other, one, two), head_agreement(head, other, one, two)
    assert found.compared == TEXTS
    if head.kind == "regression":
        assert (found.cells, found.changed, found.weighted) == ((), 0, None)
    else:
        assert expected.changed
        assert found.changed == expected.changed.texts > 0
        assert matrix(found) == expected.matrix.tolist()
    assert found.difference == pytest.approx(expected.difference, rel=1e-5)
    if expected.weighted is None:
        assert found.weighted is None
    else:
        assert found.weighted == pytest.approx(expected.weighted, rel=1e-5)


def test_other_labels_are_compared_where_they_can_be() -> None:
    head = MANIFEST.heads[0]
    other = replace(head, labels=("billing", "refund", "app"))
    one, two = logits(head, 1), logits(head, 2)
    found, expected = count(head, other, one, two), head_agreement(head, other, one, two)
    assert found.rows == expected.rows == ("app", "billing", "support", "refund")
    assert matrix(found) == expected.matrix.tolist()
    assert (found.only_served, found.only_candidate) == (("support",), ("refund",))
    assert found.difference is None


def test_equal_answers_agree() -> None:
    for head in EVERY_KIND.heads:
        one = logits(head, 1)
        found = count(head, head, one, one, keep=5)
        assert (found.changed, found.difference, found.examples) == (0, 0.0, ())


def test_texts_are_kept_on_request_alone() -> None:
    head = MANIFEST.heads[0]
    one, two = np.array([[5, 0, 0]] * 4, np.float32), np.array([[0, 5, 0]] * 4, np.float32)
    assert count(head, head, one, two).examples == ()
    assert count(head, head, one, two, keep=2).examples == (
        Example("text 2", "app", "billing"),
        Example("text 3", "app", "billing"),
    )


def test_kept_text_is_cut() -> None:
    head = MANIFEST.heads[0]
    counts = HeadCounts(head, head, 1)
    counts.add("x" * 1000, *(np.array(values, np.float32) for values in ([1, 0, 0], [0, 1, 0])))
    assert counts.report().examples[0].text == "x" * 280 + " ..."


def test_matrix_of_many_labels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MAX_CELLS", 2)
    head = MANIFEST.heads[0]
    found = count(head, head, logits(head, 1), logits(head, 2))
    assert len(found.cells) == 2
    assert sum(texts for *_, texts in found.cells) + found.other_texts == TEXTS


def test_heads_are_paired_by_name_and_kind() -> None:
    topic, sentiment = MANIFEST.heads
    served = replace(MANIFEST, heads=(topic, sentiment, replace(topic, name="old")))
    candidate = replace(MANIFEST, heads=(replace(topic, name="new"), replace(sentiment, kind="multilabel"), topic))
    both, reasons = heads_in_both(served, candidate)
    assert both == [(0, 2)]
    assert reasons == {
        "new": "only the candidate has it",
        "old": "only the served model has it",
        "sentiment": "sigmoid in the served model, multilabel in the candidate",
    }


def vectors(seed: int, size: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(TEXTS, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("other", "same_space"),
    [(vectors(1), True), (vectors(1) + 0.01 * vectors(2), False), (vectors(2), False), (vectors(2, size=4), False)],
    ids=["same", "comparable", "other", "other size"],
)
def test_spaces_are_those_of_the_offline_comparison(other: NDArray[np.float32], same_space: bool) -> None:
    one = vectors(1)
    counts = EmbeddingCounts(same_space=same_space, sizes=(one.shape[1], other.shape[1]))
    for old, new in zip(one, other, strict=True):
        counts.add(old, new)
    found, expected = counts.report(), embedding_agreement(one, other, same_space=same_space)
    assert found.space == expected.space
    assert found.recognized == expected.recognized
    if expected.cosine:
        assert (found.mean, found.least) == pytest.approx((expected.cosine[0], expected.cosine[2]), abs=1e-5)
        assert found.low == pytest.approx(expected.cosine[1], abs=0.06 * (1 - expected.cosine[1]) + 1e-6)


def test_space_is_unknown_before_there_are_texts() -> None:
    counts = EmbeddingCounts(same_space=False, sizes=(2, 2))
    assert counts.report().space == "unknown"
    counts.add(*(np.array([1, 0], np.float32),) * 2)
    assert counts.report().space == "unknown"


def test_kept_vectors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MAX_PAIR_BYTES", 8 * 8 * 3)
    counts = EmbeddingCounts(same_space=False, sizes=(8, 8))
    for old in vectors(1):
        counts.add(old, old)
    assert len(counts._pairs) == 3

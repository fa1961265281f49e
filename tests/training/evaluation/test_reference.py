"""The reference of a run: shares of what its model reads and answers on validation, which a bundle accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_bundle.reference import check_reference
from polyhead_training.evaluation.novelty import fit_novelty
from polyhead_training.evaluation.reference import describe_validation
from polyhead_training.model_config import HeadConfig

HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("a", "b", "c")),
    HeadConfig(name="mood", kind="sigmoid", labels=("bad", "good"), threshold=0.9),
    HeadConfig(name="tags", kind="multilabel", labels=("x", "y")),
    HeadConfig(name="stars", kind="ordinal", labels=("1", "2", "3")),
    HeadConfig(name="price", kind="regression"),
)
ROWS = 200


def describe(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    topics = np.repeat([0, 1, 2], [100, 60, 40])
    logits = {
        "topic": np.log(np.eye(3)[topics] * 0.6 + 0.1),  # 0.7 for the predicted label
        "mood": np.repeat([[-1.0], [1.0], [5.0]], [50, 100, 50], axis=0),  # 0.27, 0.73, 0.99
        "tags": np.repeat([[1.0, -1.0], [1.0, 1.0]], [150, 50], axis=0),
        "stars": np.repeat([[9.0, 9.0], [-9.0, -9.0]], [20, 180], axis=0),
        "price": rng.normal(100, 5, (ROWS, 1)),
    }
    embeddings = rng.normal(1, 2, (ROWS, 6)).astype(np.float32)
    values: dict[str, Any] = {
        "tokens": [3, 4, 5, 9, 40] * 40,
        "max_tokens": 32,
        "unknown_tokens": 0.125,
        "novelty": fit_novelty(embeddings, embeddings),
    }
    temperatures = dict.fromkeys(logits, 1.0)
    thresholds = {"topic": None, "mood": 0.9, "tags": (0.5, 0.5), "stars": None, "price": None}
    found = describe_validation(HEADS, logits, temperatures, thresholds, **{**values, **changes})
    assert found is not None
    return found


def test_answers_are_shares_of_what_each_head_predicts() -> None:
    heads = describe()["heads"]
    assert heads["topic"]["answers"] == [0.5, 0.3, 0.2]
    assert heads["mood"]["answers"] == [0.75, 0.25]  # by its threshold of 0.9
    assert heads["tags"]["answers"] == [1.0, 0.25]
    assert heads["stars"]["answers"] == [0.9, 0.0, 0.1]
    assert heads["price"]["answers"] == pytest.approx([0.1] * 10, abs=0.006)
    assert len(heads["price"]["edges"]) == 11


def test_confidence_is_counted_in_ten_ranges() -> None:
    heads = describe()["heads"]
    assert heads["topic"]["confidence"] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    # Both 0.73 for a label and 0.27 against it are below the threshold: the other label, with 0.27 and 0.73.
    assert heads["mood"]["confidence"] == [0, 0, 0.5, 0, 0, 0, 0, 0.25, 0, 0.25]
    assert heads["stars"]["confidence"][9] == 1
    assert heads["tags"]["confidence"] == heads["price"]["confidence"] == []


def test_texts_are_described_by_their_tokens_and_embeddings() -> None:
    found = describe()
    assert found["tokens"] == [0.4, 0.2, 0.2, 0, 0.2]  # up to 4, 8, 16, 32, 64
    assert (found["truncated"], found["unknown_tokens"], found["rows"]) == (0.2, 0.125, ROWS)
    assert found["embedding_mean"] == pytest.approx([1] * 6, abs=0.5)
    assert found["embedding_spread"] == pytest.approx([2] * 6, abs=0.4)
    assert describe(novelty=None)["embedding_mean"] == []


def test_bundle_accepts_a_reference_of_its_own_heads_alone() -> None:
    found = describe()
    heads = {
        name: bundle.HeadReference(*(tuple(head[field]) for field in ("answers", "confidence", "edges")))
        for name, head in found["heads"].items()
    }
    moments = tuple(found["embedding_mean"]), tuple(found["embedding_spread"])
    reference = bundle.Reference(ROWS, heads, tuple(found["tokens"]), 0.2, 0.125, *moments)
    labels = {head.name: len(head.labels or ()) for head in HEADS}
    check_reference(reference, labels, 6)
    for wrong, dimensions, problem in (
        ({**labels, "other": 2}, 6, r"reference\.heads: must name every head"),
        ({**labels, "topic": 4}, 6, r"reference\.heads\.topic\.answers: has 3 shares"),
        (labels, 7, r"reference\.embedding_mean: has 6 numbers for 7 dimensions"),
    ):
        with pytest.raises(ValueError, match=problem):
            check_reference(reference, wrong, dimensions)


def test_no_texts_have_no_reference() -> None:
    empty = describe_validation((), {}, {}, {}, tokens=[], max_tokens=8, unknown_tokens=0.0, novelty=None)
    assert empty is None
